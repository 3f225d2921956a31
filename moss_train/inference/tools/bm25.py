"""Full-text search in memory: Okapi BM25 over passages, for English words and Chinese characters in pairs."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from moss_train.data.records import read_records
from moss_train.errors import DataError
from moss_train.inference.tools.search import Passage

MAX_CHARACTERS = 400
"""Of a passage: longer than nearly all results in the published dialogues, which have 97 in the median."""
_SATURATION, _LENGTH = 1.2, 0.75
_RUN = re.compile(r"[a-z0-9]+|[\u3400-\u4dbf\u4e00-\u9fff]+")
_SENTENCE = re.compile(r"[^。！？!?\n]*?(?:[。！？!?]+|\.(?=\s|$)|\n|$)")


def terms_of(text: str) -> list[str]:
    """Words in lower case; of Chinese text all pairs of neighbouring characters, or the character that stands alone."""
    terms: list[str] = []
    for run in _RUN.findall(text.lower()):
        pairs = [run[place : place + 2] for place in range(len(run) - 1)]
        terms += [run] if run.isascii() or not pairs else pairs
    return terms


def split_passages(text: str, limit: int = MAX_CHARACTERS) -> Iterator[str]:
    """Whole sentences, as many as fit; a sentence that is too long is cut. Empty lines always separate."""
    for paragraph in re.split(r"\n\s*\n", text):
        passage = ""
        for sentence in _SENTENCE.findall(paragraph):
            if passage and len(passage) + len(sentence) > limit:
                yield passage.strip()
                passage = ""
            passage += sentence
            while len(passage) > limit:
                yield passage[:limit].strip()
                passage = passage[limit:]
        if passage.strip():
            yield passage.strip()


class Index:
    """Passages that can be searched.

    Args:
        passages: At least one.
    """

    def __init__(self, passages: Sequence[Passage]):
        self.passages = passages
        self._counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
        lengths = []
        for number, passage in enumerate(passages):
            terms = terms_of(f"{passage.title} {passage.text}")
            lengths.append(len(terms))
            for term, count in Counter(terms).items():
                self._counts[term].append((number, count))
        mean = sum(lengths) / len(lengths) or 1.0
        self._norms = [_SATURATION * (1 - _LENGTH + _LENGTH * length / mean) for length in lengths]

    def search(self, query: str, count: int) -> list[Passage]:
        """The passages with the highest scores; none that shares no term with the query."""
        scores: dict[int, float] = defaultdict(float)
        for term in set(terms_of(query)):
            entries = self._counts.get(term, [])
            weight = math.log(1 + (len(self.passages) - len(entries) + 0.5) / (len(entries) + 0.5))
            for number, occurrences in entries:
                scores[number] += weight * occurrences * (_SATURATION + 1) / (occurrences + self._norms[number])
        best = heapq.nsmallest(count, scores.items(), key=lambda item: (-item[1], item[0]))
        return [self.passages[number] for number, _ in best]


def read_corpus(paths: Iterable[Path]) -> Index:
    """An index of files: `.txt` and `.md`, and records with `text` and, where there are, `title` and `url` in any format that data has.

    Raises:
        DataError: A file is missing or is not such a file, or there is nothing in any.
    """
    passages = [passage for path in paths for document in _read_documents(path) for passage in document]
    if not passages:
        raise DataError("the corpus holds no text")
    return Index(passages)


def _read_documents(path: Path) -> Iterator[list[Passage]]:
    if path.suffix in (".txt", ".md"):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None
        yield [Passage(part, path.stem) for part in split_passages(text)]
        return
    for record in read_records(str(path)):
        value = record.value if isinstance(record.value, dict) else {}
        text, title, url = (value.get(name) or "" for name in ("text", "title", "url"))
        if not all(isinstance(field, str) for field in (text, title, url)) or not text:
            raise DataError(f"{record.origin}: expected a record with `text` (and `title`, `url`), found {sorted(value) or 'no object'}")
        yield [Passage(part, title, url) for part in split_passages(text)]
