"""Scores responses with a preference model: the larger the reward, the better. What is there already is kept when it is started again.

python scripts/score.py model=PM responses=responses.jsonl out=scored.jsonl       # what scripts/sample.py wrote
python scripts/score.py model=PM comparisons=comparisons.jsonl out=scored.jsonl   # any layout of comparisons
python scripts/score.py model=PM dialogues=dialogues.jsonl out=scored.jsonl       # every reply in any layout of dialogues
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("score")
