"""Learning byte-level BPE merges from counted pieces of text, in memory that grows with the text kept and with nothing else.

The rule is BPE's (Sennrich et al., 2016, "Neural Machine Translation of Rare Words with Subword Units", section 3.2): merge the most
frequent pair of neighbouring symbols, again and again. Ties go to the pair with the smaller ids, as in the trainer of the `tokenizers`
library, whose merges these equal. What differs is how: every piece lies in one flat array of symbols, and a merge is a handful of array
operations over the places where its pair stands. Learning may start from symbols of an existing vocabulary, so that the new merges come
after all of its own.

Notation: a *symbol* is a token id at a place of the array, `-1` between pieces, `-2` where a merge has swallowed it. Both ends of a token
carry its width, so that either neighbour is one subtraction or addition away.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BETWEEN, SWALLOWED = -1, -2
# Places that are looked at together when pairs are first counted: bounds what the temporary arrays of that pass take.
CHUNK = 1 << 22
# A token's width in symbols is 16 bits; pieces are cut well below that.
LONGEST_PIECE = 1 << 14

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Merge:
    """One learned merge: `left` and `right` become `token`, which occurred `count` times in the text when it was learned."""

    left: int
    right: int
    token: int
    count: int


class Pieces:
    """Counted pieces of text as symbols, laid out for learning.

    Args:
        size: Symbols in all pieces together, as far as known; the arrays grow where it was too small.
    """

    def __init__(self, size: int = 1 << 16):
        self.symbols = np.full(size + 2, BETWEEN, dtype=np.int32)
        self.weights = np.zeros(size + 2, dtype=np.uint32)
        self.used = 1

    def add(self, symbols: npt.NDArray[np.int32], lengths: Ints, counts: Ints) -> None:
        """Append pieces.

        Args:
            symbols: The symbols of all of them, one after another.
            lengths: How many each has, at most `LONGEST_PIECE`.
            counts: How often each occurs, at least 1.
        """
        if len(lengths) == 0:
            return
        if int(lengths.max()) > LONGEST_PIECE:
            raise ValueError(f"a piece of {int(lengths.max())} symbols; cut pieces to {LONGEST_PIECE} at most")
        # Each piece is followed by one place between pieces.
        places = np.arange(len(symbols), dtype=np.int64) + np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
        end = self.used + len(symbols) + len(lengths)
        if end + 1 > len(self.symbols):
            self._grow(max(end + 1, len(self.symbols) * 5 // 4))
        self.symbols[self.used + places] = symbols
        self.weights[self.used + places] = np.repeat(np.minimum(counts, np.iinfo(np.uint32).max), lengths)
        self.used = end

    def count(self, ids: int) -> Ints:
        """int64 [ids]; how often each symbol stands in the text now."""
        symbols = self.symbols[: self.used]
        here = symbols >= 0
        return np.bincount(symbols[here], weights=self.weights[: self.used][here], minlength=ids).astype(np.int64)

    def _grow(self, size: int) -> None:
        symbols = np.full(size, BETWEEN, dtype=np.int32)
        symbols[: self.used] = self.symbols[: self.used]
        self.symbols = symbols
        weights = np.zeros(size, dtype=np.uint32)
        weights[: self.used] = self.weights[: self.used]
        self.weights = weights


def learn_merges(
    pieces: Pieces,
    tokens: Sequence[bytes],
    new_tokens: int,
    min_count: int = 2,
    progress: Callable[[int], None] | None = None,
) -> list[Merge]:
    """Learn merges until `new_tokens` tokens that did not exist before have been made.

    Args:
        pieces: The text; used up.
        tokens: Bytes of each id that `pieces` may hold; new ids follow on.
        new_tokens: How many to make; fewer where no pair is left that occurs `min_count` times.
        min_count: A pair that occurs less often is not merged.
        progress: Told the number of new tokens from time to time.

    Returns:
        The merges in order. One whose bytes are already a token's leads to that token and makes no new one.
    """
    learner = _Learner(pieces, tokens, max(1, min_count))
    merges: list[Merge] = []
    made = 0
    while made < new_tokens:
        merge, is_new = learner.step() or (None, False)
        if merge is None:
            break
        merges.append(merge)
        made += is_new
        if progress is not None and is_new and made % 256 == 0:
            progress(made)
    return merges


class _Learner:
    """The state of learning. `counts` holds every pair that occurs often enough, exactly; `added` where pairs with new tokens stand."""

    def __init__(self, pieces: Pieces, tokens: Sequence[bytes], min_count: int):
        self.symbols = pieces.symbols[: pieces.used + 1]
        self.weights = pieces.weights[: pieces.used + 1]
        self.widths = np.ones(len(self.symbols), dtype=np.uint16)
        self.tokens = list(tokens)
        self.ids: dict[bytes, int] = {}
        for token_id, token in enumerate(self.tokens):
            self.ids.setdefault(token, token_id)
        self.min_count = min_count
        self.added: dict[int, list[npt.NDArray[Any]]] = {}
        self._index()
        self.heap = [(-count, key) for key, count in self.counts.items()]
        heapq.heapify(self.heap)

    # ------------------------------------------------------------------ the pairs at the start

    def _neighbours(self) -> Iterator[tuple[Ints, Ints]]:
        """Places where a pair stands at the start, and its key, a part of the text at a time."""
        for start in range(0, len(self.symbols) - 1, CHUNK):
            part = self.symbols[start : start + CHUNK + 1]
            places = np.flatnonzero((part[:-1] >= 0) & (part[1:] >= 0))
            yield places + start, _key(part[places], part[places + 1])

    def _index(self) -> None:
        """Count every pair and note the places of those that are frequent enough, in the order of pair and place."""
        keys: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        totals: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        for places, found in self._neighbours():
            some, sums = _sum_by_key(found, self.weights[places])
            keys, totals = _sum_by_key(np.concatenate([keys, some]), np.concatenate([totals, sums]))
        keep = totals >= self.min_count
        self.first_keys, totals = keys[keep], totals[keep]
        self.counts = dict(zip(self.first_keys.tolist(), totals.tolist()))
        sizes = np.zeros(len(self.first_keys), dtype=np.int64)
        for _, found in self._neighbours():
            sizes += np.bincount(self._ranks(found)[1], minlength=len(sizes))
        self.first_ends = np.cumsum(sizes)
        self.first_places = np.empty(int(sizes.sum()), dtype=np.int32 if len(self.symbols) < 2**31 else np.int64)
        filled = self.first_ends - sizes
        for places, found in self._neighbours():
            known, ranks = self._ranks(found)
            order = np.argsort(ranks, kind="stable")
            ranks = ranks[order]
            groups, begins, lengths = np.unique(ranks, return_index=True, return_counts=True)
            within = np.arange(len(ranks)) - np.repeat(begins, lengths)
            self.first_places[filled[ranks] + within] = places[known][order]
            filled[groups] += lengths

    def _ranks(self, keys: Ints) -> tuple[npt.NDArray[np.bool_], Ints]:
        """Which of the keys are kept, and the rank of those."""
        if len(self.first_keys) == 0:
            return np.zeros(len(keys), dtype=bool), np.empty(0, dtype=np.int64)
        ranks = np.minimum(np.searchsorted(self.first_keys, keys), len(self.first_keys) - 1)
        known = self.first_keys[ranks] == keys
        return known, ranks[known]

    # ------------------------------------------------------------------ one merge

    def step(self) -> tuple[Merge, bool] | None:
        """Merge the most frequent pair; the merge and whether its token is new. None where no pair is left."""
        while self.heap:
            count, key = heapq.heappop(self.heap)
            current = self.counts.get(key, 0)
            if current == -count:
                return self._merge(key, current)
            # Counts only fall between the making of a pair and its merge: an entry that is too high goes back with what it is now.
            if current and -count > current:
                heapq.heappush(self.heap, (-current, key))
        return None

    def _merge(self, key: int, count: int) -> tuple[Merge, bool]:
        left, right = key >> 32, key & 0xFFFFFFFF
        del self.counts[key]
        token = self.tokens[left] + self.tokens[right]
        is_new = token not in self.ids
        if is_new:
            self.ids[token] = len(self.tokens)
            self.tokens.append(token)
        made = self.ids[token]
        places = self._standing(key, left, right)
        if len(places):
            self._replace(places, key, made, is_new)
        return Merge(left, right, made, count), is_new

    def _standing(self, key: int, left: int, right: int) -> Ints:
        """Where the pair stands now, ascending, the later of two that overlap left out."""
        found = self.added.pop(key, [])
        if len(self.first_keys):
            rank = int(np.searchsorted(self.first_keys, key))
            if rank < len(self.first_keys) and self.first_keys[rank] == key:
                begin = int(self.first_ends[rank - 1]) if rank else 0
                found.append(self.first_places[begin : int(self.first_ends[rank])])
        places = found[0].astype(np.int64) if len(found) == 1 else np.unique(np.concatenate(found).astype(np.int64))
        places = places[self.symbols[places] == left]
        seconds = places + self.widths[places]
        stands = self.symbols[seconds] == right
        places, seconds = places[stands], seconds[stands]
        if left == right and len(places):
            # A run of k equal symbols has k - 1 pairs; from its start, every second one is merged.
            begins = np.concatenate([[True], seconds[:-1] != places[1:]])
            numbers = np.arange(len(places))
            places = places[(numbers - np.maximum.accumulate(np.where(begins, numbers, 0))) % 2 == 0]
        return places

    def _replace(self, places: Ints, key: int, made: int, is_new: bool) -> None:
        """Write the merged token and bring the counts of its neighbours up to date."""
        symbols, widths = self.symbols, self.widths
        left, right = key >> 32, key & 0xFFFFFFFF
        weights = self.weights[places].astype(np.int64)
        seconds = places + widths[places]
        after = seconds + widths[seconds]
        follows = after[:-1] == places[1:]  # the next pair stands right behind this one: the neighbourhood of two is counted once
        before = symbols[places - widths[places - 1]]
        gone_left = before >= 0
        gone_left[1:] &= ~follows
        gone_right = symbols[after] >= 0
        self._take(_key(before[gone_left], left), weights[gone_left], key)
        self._take(_key(right, symbols[after][gone_right]), weights[gone_right], key)

        symbols[places] = made
        symbols[seconds] = SWALLOWED
        new_widths = (after - places).astype(np.uint16)
        widths[places] = new_widths
        widths[after - 1] = new_widths

        if not is_new:
            # The token existed, and pairs with it that were too rare to be kept may now be frequent: count all of them anew.
            places = np.flatnonzero(symbols == made)
            weights = self.weights[places].astype(np.int64)
            after = places + widths[places]
            follows = after[:-1] == places[1:]
        firsts = places - widths[places - 1]
        before = symbols[firsts]
        is_pair = before >= 0
        keys, where, sums = _key(before[is_pair], made), firsts[is_pair], weights[is_pair]
        is_pair = symbols[after] >= 0
        is_pair[:-1] &= ~follows
        keys = np.concatenate([keys, _key(made, symbols[after][is_pair])])
        where = np.concatenate([where, places[is_pair]])
        self._give(keys, where, np.concatenate([sums, weights[is_pair]]), made)

    def _take(self, keys: Ints, weights: Ints, merged: int) -> None:
        """Lower the counts of pairs; those that become too rare are forgotten, since a pair of old tokens never becomes more frequent."""
        if len(keys) == 0:
            return
        counts, added = self.counts, self.added
        for key, weight in zip(*(array.tolist() for array in _sum_by_key(keys, weights))):
            count = counts.get(key)
            if count is None or key == merged:
                continue
            if count - weight >= self.min_count:
                counts[key] = count - weight
            else:
                del counts[key]
                added.pop(key, None)

    def _give(self, keys: Ints, places: Ints, weights: Ints, made: int) -> None:
        """Set the counts of pairs with the token `made`, and note where they stand, ascending."""
        if len(keys) == 0:
            return
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], places[order].astype(self.first_places.dtype)
        begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        totals = np.add.reduceat(weights[order], begins)
        ends = np.append(begins[1:], len(keys))
        frequent = totals >= self.min_count
        columns = (keys[begins][frequent], totals[frequent], begins[frequent], ends[frequent])
        for key, total, begin, end in zip(*(column.tolist() for column in columns)):
            self.counts[key] = total
            # A copy: a slice would keep the whole array alive.
            self.added[key] = [places[begin:end].copy()]
            heapq.heappush(self.heap, (-total, key))
        twice = made << 32 | made
        if twice in self.added:
            # The one pair that comes from either side.
            self.added[twice] = [np.sort(self.added[twice][0])]
        if len(self.heap) > 3 * len(self.counts) + 1024:
            self.heap = [(-count, key) for key, count in self.counts.items()]
            heapq.heapify(self.heap)


def _key(left: npt.NDArray[np.int32] | int, right: npt.NDArray[np.int32] | int) -> Ints:
    """One integer for a pair, ordered as the pair is."""
    return (np.asarray(left, dtype=np.int64) << 32) | np.asarray(right, dtype=np.int64)


def _sum_by_key(keys: Ints, weights: npt.NDArray[np.integer]) -> tuple[Ints, Ints]:
    """The distinct keys, ascending, and the sum of the weights of each."""
    if len(keys) == 0:
        return keys, weights.astype(np.int64)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[begins], np.add.reduceat(weights[order].astype(np.int64), begins)
