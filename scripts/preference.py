"""Preference-aware training: fine-tuning on dialogues whose replies have levels, so that the model can be asked for the best.

python scripts/preference.py +config=tiny_preference init_from=runs/tiny_sft/export data.train=tagged.jsonl
deepspeed --hostfile hosts scripts/preference.py +config=moss_moon_003 init_from=DIR data.train=TAGGED
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("preference")
