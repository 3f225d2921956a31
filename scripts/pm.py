"""Training of the preference model, on comparisons of responses.

deepspeed --num_accelerators 2 scripts/pm.py +config=tiny_pm
deepspeed --hostfile hosts scripts/pm.py +config=moss_moon_003_pm init_from=DIR data.train=DIR
python scripts/pm.py +config=tiny_pm init_from=runs/tiny_sft/export data.train=comparisons.jsonl
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("pm")
