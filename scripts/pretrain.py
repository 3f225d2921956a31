"""Continued pretraining on corpora that scripts/prepare.py wrote.

deepspeed --num_accelerators 2 scripts/pretrain.py +config=tiny_pretrain
deepspeed --hostfile hosts scripts/pretrain.py +config=moss_moon_003_base init_from=DIR data.train=CORPUS data.valid=CORPUS
python scripts/pretrain.py -m +config=tiny_pretrain data.weights.zh=0.5,0.8
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("pretrain")
