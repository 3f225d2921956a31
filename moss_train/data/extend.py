"""A larger vocabulary for a tokenizer: new merges after its own, and every special token where MOSS has it.

    byte-level BPE, the old ids as they were | new tokens | <|endoftext|> | whitespace runs | controls | reserved tags | unused rows

From CodeGen's 50,295 ids and 55,772 new tokens that makes MOSS's 106,072: `<|endoftext|>` moves from 50256 to 106028, the 38 runs of blanks
from 50257..50294 to 106029..106066, and the controls follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moss_train.data.backend import added_token, describe, read_description
from moss_train.data.merges import Merge
from moss_train.data.tokenizer import CONTROL_TOKENS, ENDOFTEXT, RESERVED_TAG, RESERVED_TAG_PATTERN, RESERVED_TAGS, MossTokenizer
from moss_train.errors import DataError, UsageError


@dataclass(frozen=True)
class Extension:
    """A tokenizer with more tokens, and how its ids follow from the old ones.

    Attributes:
        tokenizer: The new one.
        old_ids: int64 [vocab_size]; the old id of each new one, -1 where there is none.
        learned: int64 [K]; the ids of the new tokens of text.
        pieces: For each of them the old ids that it is made of, at least two.
        log_shares: float64 [K]; for each of them the logarithm of how often its first piece went on to be it, in the text learned from.
    """

    tokenizer: MossTokenizer
    old_ids: npt.NDArray[np.int64]
    learned: npt.NDArray[np.int64]
    pieces: list[tuple[int, ...]]
    log_shares: npt.NDArray[np.float64]

    @property
    def new_ids(self) -> npt.NDArray[np.int64]:
        """int64 [largest old id + 1]; the new id of each old one, -1 where it has none."""
        kept = np.flatnonzero(self.old_ids >= 0)
        new_ids = np.full(int(self.old_ids.max()) + 1, -1, dtype=np.int64)
        new_ids[self.old_ids[kept]] = kept
        return new_ids


def text_tokens(tokenizer: MossTokenizer) -> list[bytes]:
    """Bytes of the tokens that merging makes, by id: those before the first added token.

    Raises:
        DataError: Their ids are not 0, 1, 2, ...: what follows on is then not known.
    """
    description = tokenizer.description
    added = {entry["content"] for entry in description["added_tokens"]}
    ids = sorted(token_id for token, token_id in description["model"]["vocab"].items() if token not in added)
    if ids != list(range(len(ids))):
        gap = next(index for index, token_id in enumerate(ids) if index != token_id)
        raise DataError(f"the vocabulary has no token with id {gap} but has later ones; expected ids without gaps before the added tokens")
    return [tokenizer.token_bytes(token_id) for token_id in ids]


def tokens_of(directory: Path) -> frozenset[str]:
    """Spellings of all tokens that the files of a directory hold themselves, so that its model has rows for them."""
    description, _ = read_description(directory)
    return frozenset(description["model"]["vocab"]) | {entry["content"] for entry in description["added_tokens"]}


def extend_tokenizer(
    base: MossTokenizer,
    merges: Sequence[Merge],
    *,
    trained: frozenset[str],
    counts: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None,
    reserved_tags: int | None = None,
    rows: int | None = None,
    pad_multiple: int = 128,
) -> Extension:
    """Append learned merges to a tokenizer and place the added tokens after them.

    Args:
        base: The tokenizer; the ids of `merges` are its own, the new ones follow on those of `text_tokens`.
        merges: As `learn_merges` gives them.
        trained: Tokens that the model has rows for (`tokens_of`). `base` may hold controls that were given ids just now; those are new
            here too.
        counts: How often each token stood in the text learned from, before the merges and after them, for `log_shares`.
        reserved_tags: Tags to have at least; by default those there are, 16 where there are none.
        rows: Rows of the embedding; by default the ids in use, rounded up to `pad_multiple`.
        pad_multiple: See `rows`.

    Raises:
        UsageError: `rows` is smaller than the ids in use.
        DataError: The base's ids have gaps.
    """
    old = text_tokens(base)
    description = base.description
    added = {entry["content"]: entry for entry in description["added_tokens"]}
    vocabulary = {token: token_id for token, token_id in description["model"]["vocab"].items() if token not in added}
    units = {token_id: token for token, token_id in vocabulary.items()}
    parts: dict[int, tuple[int, ...]] = {token_id: (token_id,) for token_id in range(len(old))}
    new_merges = []
    for merge in merges:
        new_merges.append([units[merge.left], units[merge.right]])
        if merge.token not in units:
            units[merge.token] = units[merge.left] + units[merge.right]
            vocabulary[units[merge.token]] = merge.token
            parts[merge.token] = parts[merge.left] + parts[merge.right]

    contents = added_tokens(base, reserved_tags)
    new_added = [
        added_token(len(vocabulary) + index, content, special=content not in added or bool(added[content]["special"]))
        for index, content in enumerate(contents)
    ]
    used = len(vocabulary) + len(new_added)
    if rows is not None and rows < used:
        raise UsageError(f"vocab_size={rows} is smaller than the {used} ids in use; raise it, or learn fewer new tokens")
    size = rows if rows is not None else math.ceil(used / pad_multiple) * pad_multiple
    merged = [pair if isinstance(pair, list) else pair.split(" ") for pair in description["model"]["merges"]]
    tokenizer = MossTokenizer(describe(vocabulary, [*merged, *new_merges], new_added), size)

    old_ids = np.full(size, -1, dtype=np.int64)
    old_ids[: len(old)] = np.arange(len(old))
    for entry in new_added:
        if entry["content"] in trained:
            old_ids[entry["id"]] = added[entry["content"]]["id"]
    learned = np.arange(len(old), len(vocabulary))
    pieces = [parts[token_id] for token_id in learned.tolist()]
    shares = np.zeros(len(learned))
    if counts is not None and pieces:
        before, after = counts
        firsts = np.array([piece[0] for piece in pieces], dtype=np.int64)
        # A token that later merges have swallowed everywhere counts as half an occurrence.
        shares = np.log(np.maximum(after[learned], 0.5) / np.maximum(before[firsts], 1))
    return Extension(tokenizer, old_ids, learned, pieces, np.minimum(shares, 0.0))


def added_tokens(base: MossTokenizer, reserved_tags: int | None) -> list[str]:
    """The spellings of the added tokens that an extension of a tokenizer has, in MOSS's order.

    Args:
        base: The tokenizer. reserved_tags: As for `extend_tokenizer`.
    """
    added = {entry["content"]: entry for entry in base.description["added_tokens"]}
    by_id = sorted(added, key=lambda content: added[content]["id"])
    tags = sorted((content for content in by_id if RESERVED_TAG_PATTERN.fullmatch(content)), key=_tag_number)
    text = [content for content in by_id if not added[content]["special"]]
    placed = {ENDOFTEXT, *CONTROL_TOKENS, *tags, *text}
    other = [content for content in by_id if content not in placed]
    wanted = max(len(tags), (len(tags) or RESERVED_TAGS) if reserved_tags is None else reserved_tags)
    more = [name for name in map(RESERVED_TAG.format, range(wanted)) if name not in tags][: wanted - len(tags)]
    return [ENDOFTEXT, *text, *CONTROL_TOKENS, *other, *tags, *more]


def _tag_number(content: str) -> int:
    match = RESERVED_TAG_PATTERN.fullmatch(content)
    assert match is not None
    return int(match[1])
