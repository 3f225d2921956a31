"""Shows on your own configuration that an interrupted run is the run that was not: the same losses, weights and moments, bit for bit.

python scripts/verify_resume.py +config=tiny_sft
deepspeed --num_accelerators 2 scripts/verify_resume.py +config=tiny_sft data.train=dialogues.jsonl verify.steps=20 verify.stop_at=7
python scripts/verify_resume.py stage=pretrain +config=tiny_pretrain
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("verify_resume")
