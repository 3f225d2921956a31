"""Measures speed and memory beside what one would otherwise run, in the same run: ratios, a table, JSON, a bar chart for each suite.

python scripts/benchmark.py                                   # all suites; what is measured already is not measured again
python scripts/benchmark.py suite=[train,loss] rounds=9
python scripts/benchmark.py suite=[sft] data=dialogues.jsonl  # launches DeepSpeed itself, on `ranks` ranks
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("benchmark")
