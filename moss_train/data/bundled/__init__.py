"""Demonstration dialogues that ship with the package, of the project's own making and under its licence (Apache-2.0).

`dialogues_train.jsonl` and `dialogues_dev.jsonl` are written by `make_dialogues.py` from the words in `vocabulary.py`.
"""
