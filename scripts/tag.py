"""Turns rewards into levels, and responses into dialogues that carry them, to be trained on.

python scripts/tag.py scored=scored.jsonl out=tagged.jsonl                                     # five levels of equal shares
python scripts/tag.py scored=round2.jsonl out=tagged2.jsonl frozen=tagged.jsonl.tagging.json   # by the same measure
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("tag")
