"""Texts to ids with gigatoken, which gives the ids of `MossTokenizer.encode` several times faster; where it is absent, with `tokenizers`.

The encoder is built from the tokenizer's description without its special tokens, so that no text can yield the id of a control or a tag.

The two libraries hold tables of different Unicode versions: a letter that only one of them knows divides `X's` differently. Texts with such
a character are encoded by `tokenizers`. Which characters these are is known for the versions in `KNOWN_DIFFERENCES` and found out for
others (`find_differences`, some seconds). Whoever writes files compares a sample nevertheless (`check_same`).
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import resource
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moss_train.data.backend import Description
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError

Ranges = Sequence[tuple[int, int]]

# Letters and digits of Unicode 17, which gigatoken knows and tokenizers does not yet: first and last code point.
_NEW_IN_UNICODE_17 = (
    (0x88F, 0x88F), (0xC5C, 0xC5C), (0xCDC, 0xCDC), (0xA7CE, 0xA7CF), (0xA7D2, 0xA7D2), (0xA7D4, 0xA7D4), (0xA7F1, 0xA7F1),
    (0x10940, 0x10959), (0x10EC5, 0x10EC7), (0x11DB0, 0x11DDB), (0x11DE0, 0x11DE9), (0x16EA0, 0x16EB8), (0x16EBB, 0x16ED3),
    (0x16FF2, 0x16FF6), (0x187F8, 0x187FF), (0x18D09, 0x18D1E), (0x18D80, 0x18DF2), (0x1E6C0, 0x1E6DE), (0x1E6E0, 0x1E6E2),
    (0x1E6E4, 0x1E6E5), (0x1E6E7, 0x1E6ED), (0x1E6F0, 0x1E6F4), (0x1E6FE, 0x1E6FF), (0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD),
    (0x323B0, 0x33479),
)  # fmt: skip
KNOWN_DIFFERENCES: dict[tuple[str, str], Ranges] = {("0.10.0", "0.23.3"): _NEW_IN_UNICODE_17}
"""Versions of gigatoken and tokenizers -> characters they class differently."""


MOST_REMEMBERED = 512 * 2**20
"""Bytes that a process may grow by before what gigatoken remembers is given up."""


class Encoded(NamedTuple):
    """Ids of several texts, one after another.

    Attributes:
        ids: uint32 [tokens].
        lengths: int64 [texts], tokens of each.
    """

    ids: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int64]


class FastEncoder:
    """Encodes many texts on the calling thread.

    Args:
        tokenizer: What its ids are equal to.
        differences: Characters for which gigatoken is not trusted; by default those known, or found, for the installed versions.

    Attributes:
        name: The library that encodes, with its version.
        note: Why it is not gigatoken, for the user's log; None: it is.
        differences: Those characters, as ranges of code points.
    """

    def __init__(self, tokenizer: MossTokenizer, differences: Ranges | None = None):
        self._tokenizer = tokenizer
        self._fast: Any = None
        self.differences: Ranges = ()
        self._description = tokenizer.text_description
        self.note = _why_not(tokenizer, self._description)
        if self.note is None:
            self.differences = installed_differences() if differences is None else differences
            self._renew()
            self._unsure = _one_of(self.differences)
            self._first_bytes = _first_bytes(self.differences)
        library = "tokenizers" if self._fast is None else "gigatoken"
        self.name = f"{library} {importlib.metadata.version(library)}"

    def _renew(self) -> None:
        """Makes gigatoken's encoder, which remembers every piece of text that it has met: without end, so it is made anew now and then."""
        from gigatoken import Tokenizer

        self._fast = None
        self._fast = Tokenizer.from_json(json.dumps(self._description, ensure_ascii=False))
        self._resident = _resident_bytes()

    def encode(self, texts: Sequence[bytes]) -> Encoded:
        """Ids of texts, exactly those of `MossTokenizer.encode`.

        Args:
            texts: In UTF-8.
        """
        if self._fast is None:
            return _join(self._tokenizer.encode_batch([text.decode() for text in texts]))
        if _resident_bytes() - self._resident > MOST_REMEMBERED:
            self._renew()
        encoded = _flat(self._fast.encode_batch(list(texts), parallel=False)) if texts else _join([])
        unsure = [place for place, text in enumerate(texts) if self._is_unsure(text)]
        if unsure:
            rows = self._tokenizer.encode_batch([texts[place].decode() for place in unsure])
            encoded = _replace(encoded, dict(zip(unsure, rows, strict=True)))
        return encoded

    def _is_unsure(self, text: bytes) -> bool:
        """Whether a text has a character that the libraries class differently; most texts lack even its first two bytes."""
        return any(pattern.search(text) for pattern in self._first_bytes) and self._unsure.search(text.decode()) is not None

    def check_same(self, text: bytes, ids: npt.NDArray[np.uint32], document: str) -> None:
        """Holds ids against those of `MossTokenizer.encode`.

        Args:
            text: In UTF-8.
            ids: uint32 [tokens], what `encode` gave.
            document: Names it in the message.

        Raises:
            DataError: They differ.
        """
        if self._fast is None:
            return
        # Without offsets and such, which `MossTokenizer.encode` would fill in: the same backend, the same ids.
        expected = np.array(self._tokenizer.encode_batch([text.decode()])[0], dtype=np.uint32)
        if len(expected) == len(ids) and bool((expected == ids).all()):
            return
        common = min(len(expected), len(ids))
        differing = np.flatnonzero(expected[:common] != ids[:common])
        place = int(differing[0]) if len(differing) else common
        found = int(ids[place]) if place < len(ids) else "no more"
        wanted = int(expected[place]) if place < len(expected) else "no more"
        near = self._tokenizer.decode(expected[max(0, place - 8) : place + 8].tolist())
        raise DataError(
            f"{document}: token {place} is {found} by {self.name}, but {wanted} by tokenizers, near {near!r}. The ids of this text would "
            "be wrong; nothing of this shard is kept. Prepare with encoder=tokenizers, and report the text."
        )


class SlowEncoder(FastEncoder):
    """The same with `tokenizers` alone."""

    def __init__(self, tokenizer: MossTokenizer):
        self._tokenizer, self._fast, self.differences, self.note = tokenizer, None, (), "encoder=tokenizers was asked for"
        self.name = f"tokenizers {importlib.metadata.version('tokenizers')}"


def _resident_bytes() -> int:
    """Memory of this process; where the system does not tell, the most it has had."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _why_not(tokenizer: MossTokenizer, description: Description) -> str | None:
    """Why gigatoken cannot be used for a tokenizer."""
    try:
        # Its results are arrays of awkward; processes that are forked later need not load it again.
        import awkward  # noqa: F401
        import gigatoken  # noqa: F401
    except ImportError as error:
        return f'gigatoken cannot be loaded ({error}); tokenizers encodes, several times slower: pip install "moss-train[prepare]"'
    plain = {character for entry in description["added_tokens"] for character in entry["content"]}
    overlapping = next((content for content in tokenizer.special_contents if plain & set(content)), None)
    if overlapping is not None:
        # tokenizers finds specials first and then leaves them as text: added tokens that overlap one are not found there.
        return f"the special token {overlapping!r} shares characters with an added token that is text; texts are encoded with tokenizers"
    return None


def installed_differences() -> Ranges:
    """The characters that the installed versions class differently."""
    versions = (importlib.metadata.version("gigatoken"), importlib.metadata.version("tokenizers"))
    if versions not in KNOWN_DIFFERENCES:
        KNOWN_DIFFERENCES[versions] = find_differences()
    return KNOWN_DIFFERENCES[versions]


def find_differences() -> list[tuple[int, int]]:
    """All characters after which gigatoken and tokenizers divide a text differently, as ranges of code points; takes seconds."""
    found: list[tuple[int, int]] = []
    # Planes 4 to 13 are empty, and what is for private use is no letter anywhere.
    for code in (*_differing(0, 0x40000), *_differing(0xE0000, 0xE1000)):
        if found and found[-1][1] == code - 1:
            found[-1] = (found[-1][0], code)
        else:
            found.append((code, code))
    return found


def _differing(start: int, end: int) -> Iterator[int]:
    """Code points in [start, end) that differ, found by halving what differs as a whole."""
    from gigatoken.gigatoken_rs import pretokenizer
    from tokenizers import pre_tokenizers

    step = 4096
    if end - start > step:
        for first in range(start, end, step):
            yield from _differing(first, min(first + step, end))
        return
    # A letter, a number, a blank and anything else divide these four differently.
    probe = "".join(f"{chr(code)}'s {chr(code)}1{chr(code)}a{chr(code)}. " for code in range(start, end) if not 0xD800 <= code < 0xE000)
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    expected = [probe[first:last].encode() for _, (first, last) in splitter.pre_tokenize_str(probe)]
    if list(pretokenizer(probe.encode())) == expected:
        return
    if end - start == 1:
        yield start
        return
    middle = (start + end) // 2
    yield from _differing(start, middle)
    yield from _differing(middle, end)


def _one_of(ranges: Ranges) -> re.Pattern[str]:
    inside = "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)
    return re.compile(f"[{inside}]" if inside else "(?!)")


def _first_bytes(ranges: Ranges) -> list[re.Pattern[bytes]]:
    """Patterns of the first two bytes, in UTF-8, of the characters in ranges; each begins with one certain byte, which is found fast."""
    seconds: dict[int, set[int]] = {}
    for first, last in ranges:
        # A character of each block of 64: those of a block differ in the last byte only.
        for code in (*range(first, last, 64), last):
            encoded = chr(code).encode()
            seconds.setdefault(encoded[0], set()).add(encoded[1])
    return [
        re.compile(re.escape(bytes([lead])) + b"[" + b"".join(re.escape(bytes([second])) for second in sorted(found)) + b"]", re.DOTALL)
        for lead, found in sorted(seconds.items())
    ]


def _flat(array: Any) -> Encoded:
    """An awkward array of ids as plain ones, without lists."""
    layout = array.layout
    offsets = np.asarray(layout.offsets.data)
    ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
    return Encoded(ids, np.diff(offsets))


def _join(rows: Iterable[npt.ArrayLike]) -> Encoded:
    arrays = [np.array(row, dtype=np.uint32) for row in rows]
    lengths = np.array([len(row) for row in arrays], dtype=np.int64)
    return Encoded(np.concatenate(arrays) if arrays else np.empty(0, dtype=np.uint32), lengths)


def _replace(encoded: Encoded, rows: dict[int, list[int]]) -> Encoded:
    """The same with other ids for some texts."""
    pieces: list[npt.ArrayLike] = list(np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1]))
    for place, row in rows.items():
        pieces[place] = row
    return _join(pieces)
