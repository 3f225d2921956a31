"""Memory, time and disk of a training run before a device is taken. Takes what the stage takes; nothing is read or trained.

python scripts/plan.py +config=moss_moon_003_sft world_size=8 device=H200
python scripts/plan.py +config=moss_moon_003_sft world_size=8 device=H100 rows=350000 mfu=0.45 out=plan.json
python scripts/plan.py stage=quantize model=moss_16b bits=4 device=H200
python scripts/plan.py +config=tiny_sft device=cpu memory_gib=4 model.num_layers=12
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("plan")
