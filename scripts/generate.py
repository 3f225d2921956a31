"""Answers a prompt, or continues a dialogue, with any model directory.

python scripts/generate.py model=DIR prompt="What is 3 + 4?"
python scripts/generate.py model=DIR dialogue=FILE.jsonl
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("generate")
