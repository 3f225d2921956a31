"""Writes a variant of a model (an export, or a stock CodeGen directory) with weights of 4 or 8 bits, compared with its source.

python scripts/quantize.py model=runs/tiny_sft/export bits=4
python scripts/quantize.py model=runs/tiny_sft/export bits=8 method=torchao out=DIR
python scripts/quantize.py model=runs/tiny_sft/export bits=4 data=dialogues.jsonl samples=512 max_kl=0.02
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("quantize")
