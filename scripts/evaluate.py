"""Measures models: one task at a time. What it writes is an artefact of its own, whose parent is the model.

python scripts/evaluate.py task=make_probes out=probes facts=200      # facts to plant, and what to ask
python scripts/evaluate.py task=transfer model=DIR probes=probes out=DIR
python scripts/evaluate.py suite=pm model=PM data=comparisons.jsonl out=DIR   # a preference model; suite is another name of task
python scripts/evaluate.py suite=perplexity model=DIR data=corpus out=DIR     # also suite=dialogue, plugins, hhh, harness
python scripts/evaluate.py compare DIR DIR ...                                # evaluations side by side
python scripts/evaluate.py suite=control model=DIR pm=PM prompts=prompts.jsonl out=DIR   # whether quality tags steer a model
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("evaluate")
