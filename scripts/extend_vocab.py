"""Gives a model of the CodeGen family a larger vocabulary: merges learned from text, rows made from those of the pieces.

python scripts/extend_vocab.py model=DIR out=DIR text=PATH new_tokens=8192
python scripts/extend_vocab.py model=DIR out=DIR text=[zh.jsonl] new_tokens=55772 vocab_size=107008 'heldout={zh: zh_dev.jsonl, code: lib}'
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("extend_vocab")
