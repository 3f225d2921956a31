"""Looks at training checkpoints.

python scripts/checkpoint.py list runs/tiny_sft
python scripts/checkpoint.py verify runs/tiny_sft      # reads and hashes every byte; exit code 4 where something is damaged
"""

import sys

from moss_train.train.listing import main

if __name__ == "__main__":
    sys.exit(main())
