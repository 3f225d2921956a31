"""Ranks responses, so that they become comparisons: by a checker, by another model, or by a person.

python scripts/rank.py responses=responses.jsonl out=comparisons.jsonl by=checker checker=number
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("rank")
