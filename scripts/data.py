"""Looks at data: what is wrong with it, what of it is trained, what it consists of; and writes it in other formats.

python scripts/data.py check PATH... --rejects rejects.jsonl
python scripts/data.py show PATH --tokenizer DIR --loss-on release --index 3 --count 2 --max-tokens 2048
python scripts/data.py stats PATH... --valid PATH --seq-len 2048 --plot stats.png
python scripts/data.py convert PATH... OUT.parquet --to messages
"""

import sys

from moss_train.data.tool import main

if __name__ == "__main__":
    sys.exit(main())
