"""Samples several responses to every prompt: what comparisons are made of. What is there already is kept when it is started again.

python scripts/sample.py model=DIR prompts=questions.jsonl samples=4 out=responses.jsonl
python scripts/sample.py model=DIR dialogue=dialogues.jsonl out=responses.jsonl      # the last reply of each, anew
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("sample")
