"""Where artefacts come from, and whether they are what they were.

python scripts/lineage.py show runs/tiny_sft/export --svg family.svg --html family.html
python scripts/lineage.py verify runs/tiny_sft/export     # every byte of it and of its ancestors; exit code 4 where something is wrong
python scripts/lineage.py diff runs/a/export runs/b/export
python scripts/lineage.py children base/ runs/
"""

import sys

from moss_train.artifacts.lineage_tool import main

if __name__ == "__main__":
    sys.exit(main())
