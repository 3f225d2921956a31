"""Tasks for lm-evaluation-harness that need no network: made of the bundled held-out dialogues by `make_tasks.py`."""
