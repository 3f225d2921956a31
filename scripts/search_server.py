"""Search in a corpus of one's own, for a chat with plugins.

python scripts/search_server.py corpus.jsonl --port 8123
"""

import sys

from moss_train.inference.tools.search_server import main

if __name__ == "__main__":
    sys.exit(main())
