"""Supervised fine-tuning on multi-turn dialogues.

deepspeed --num_accelerators 2 scripts/sft.py +config=tiny_sft
deepspeed --hostfile hosts scripts/sft.py +config=moss_moon_003_sft init_from=DIR data.train=DIR
python scripts/sft.py +config=tiny_sft data.train=dialogues.jsonl
python scripts/sft.py -m +config=tiny_sft optim.lr=1e-3,3e-3
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("sft")
