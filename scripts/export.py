"""Rewrites a model directory (an export, a Hugging Face CodeGen one, a published MOSS one) as an export that opens anywhere.

python scripts/export.py model=DIR out=DIR
python scripts/export.py model=DIR out=DIR dtype=fp16 max_shard_gb=2
"""

from moss_train.cli import run

if __name__ == "__main__":
    run("export")
