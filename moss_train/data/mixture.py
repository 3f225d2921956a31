"""Which row is sample i of a run: a pure function of (data fingerprint, seed, epoch, i).

No index array is shuffled or stored, and nothing depends on ranks, workers or micro-batches, so a run's position is one integer and a
resumed run continues at exactly the next sample under any number of ranks.
"""

from __future__ import annotations

import hashlib

_MASK64 = (1 << 64) - 1
# Four rounds suffice in theory for large halves (Luby, Rackoff 1988); small ones need more. The smallest domain is 2^8: below that the
# network has too few functions to choose from.
_ROUNDS = 8
_MIN_HALF_BITS = 4


def permutation_key(fingerprint: str, seed: int, epoch: int) -> int:
    """64-bit key of one epoch's order, from sha256 over fingerprint, seed and epoch."""
    digest = hashlib.sha256(f"moss_train sample order v1\n{fingerprint}\n{seed}\n{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def permuted_index(key: int, n: int, i: int) -> int:
    """Position i of a keyed pseudo-random permutation of 0 .. n-1.

    A Feistel network permutes the smallest even number of bits that holds n; results outside the range go through it again until one is
    inside (cycle walking; four passes or fewer on average from n = 64 on), which leaves a permutation of 0 .. n-1.

    Args:
        key: From `permutation_key`.
        n: Size of the permuted range.
        i: Position, 0 <= i < n.
    """
    if not 0 <= i < n:
        raise ValueError(f"position {i} is outside 0 .. {n - 1}")
    half = max(_MIN_HALF_BITS, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    value = i
    while True:
        left, right = value >> half, value & mask
        for round_number in range(_ROUNDS):
            left, right = right, left ^ (_mix(key + round_number * 0x9E3779B97F4A7C15 ^ right << 32 ^ right) & mask)
        value = left << half | right
        if value < n:
            return value


def sample_index(fingerprint: str, seed: int, i: int, n: int) -> tuple[int, int]:
    """The epoch and the row of sample i of a run; samples run across epochs, each of which is its own permutation.

    Args:
        fingerprint: Of the data set.
        seed: Of the run.
        i: Number of the sample since the start of the run.
        n: Rows in the data set.
    """
    epoch, position = divmod(i, n)
    return epoch, permuted_index(permutation_key(fingerprint, seed, epoch), n, position)


def _mix(value: int) -> int:
    """splitmix64's finalizer (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    value &= _MASK64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31
