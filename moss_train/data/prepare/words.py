"""Words of a text in any language, without a language's own library, and their hashes: for filters, MinHash and decontamination."""

from __future__ import annotations

import re

from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

# Scripts written without blanks between words: each character counts as a word.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_ALONE}]|[^\\W{_ALONE}]+(?:['’][^\\W{_ALONE}]+)*|[^\\w\\s]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


class Words(WordTokenizer):
    """Words, single characters of scripts without blanks, and marks of punctuation."""

    def __init__(self) -> None:
        super().__init__(None)

    def word_tokenize(self, text: str) -> list[str]:
        """Words and marks, in order."""
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Sentences, without blanks at their ends."""
        return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Where each sentence begins and ends."""
        spans, position = [], 0
        for sentence in self.sent_tokenize(text):
            start = text.index(sentence, position)
            position = start + len(sentence)
            spans.append((start, position))
        return spans


WORDS = Words()
# datatrove's other choice, xxhash, refuses texts since its version 4.
HASHING = HashConfig(hash_fc="sha1")
