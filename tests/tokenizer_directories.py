"""Tokenizer directories as others publish them: vocab.json, merges.txt and added_tokens.json, in MOSS's and in CodeGen's layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

# The 38 runs that CodeGen and MOSS add after <|endoftext|>: 31 to 2 spaces, then 9 to 2 tabs.
WHITESPACE_RUNS = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
CONTROLS = ["<eoh>", "<eom>", "<eot>", "<eoc>", "<eor>"]


def learn_merges(texts: Iterable[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE vocabulary of `size` entries and its merges, made with the library alone."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def write_gpt2_files(
    folder: Path,
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    entries: int | None = None,
    runs: bool = True,
    controls: bool = True,
) -> Path:
    """Write a directory: vocabulary, `<|endoftext|>` after it, then whitespace runs and controls, ids following one another.

    Args:
        folder: Where.
        vocabulary: Byte-level tokens from id 0.
        merges: Theirs.
        entries: Fill the vocabulary up to this many with tokens that no merge reaches, to get a published model's exact ids.
        runs: Whether added_tokens.json has the whitespace runs. controls: and the five controls.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab = dict(vocabulary)
    for number in range(len(vocab), entries or 0):
        vocab[f"unreached{number}"] = number
    vocab["<|endoftext|>"] = len(vocab)
    added = (WHITESPACE_RUNS if runs else []) + (CONTROLS if controls else [])
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    if added:
        ids = {content: len(vocab) + place for place, content in enumerate(added)}
        # The published file is not sorted by id either.
        (folder / "added_tokens.json").write_text(json.dumps(dict(sorted(ids.items()))), encoding="utf-8")
    return folder
