"""Looks at data: renders dialogues as training does and colours the tokens that carry loss.

python scripts/data.py show FILE
python scripts/data.py show FILE --tokenizer DIR --loss-on release --index 3 --count 2 --max-tokens 2048
python scripts/data.py show FILE --json --tokenizer DIR
"""

import sys

from moss_train.data.show import main

if __name__ == "__main__":
    sys.exit(main())
