"""The texts that `suite=perplexity` reads: documents with the source and the language each belongs to.

    data=texts.jsonl                   records with a field `text` (or `text_key`), or dialogues; one document each
    data=[notes/, book.txt#1]          text files; a directory is one source, `PATH#N` its first N documents
    data={zh: zh.jsonl, code: src/}    a source by each name
    data=corpus                        what `prepare` wrote: its sources, with their languages

The language of a document is what its record names under `language` or `lang`, else that of its source in a corpus, else what its letters
say (`zh`, `en` or `other`). Code has no language of its own: let it be a source.

Shards of a corpus are read as the text they spell, and encoded anew with the model's tokenizer: a corpus that was prepared with another
tokenizer can be measured too, and the figures of two models are about the same text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.data.corpus import FILE_NAME, TOKENIZER_FOLDER, CorpusSource, open_corpus
from moss_train.data.paths import form_of, split_limit
from moss_train.data.records import Piece, ProblemList, read_piece
from moss_train.data.survey import language_of_text
from moss_train.data.texts import find_text_files, read_texts, text_of
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError

_UNDETERMINED = "und"


class Document(NamedTuple):
    """A text, its language, and where it stands."""

    text: str
    language: str
    origin: str


@dataclass
class TextSource:
    """Documents under one name.

    Attributes:
        name: For the figures.
        spec: The path as given.
        corpus_source: Name of the source of a corpus; None for other texts.
        sha256: Of the texts read so far. documents: How many.
    """

    name: str
    spec: str
    corpus_source: str | None = None
    documents: int = 0
    _digest: Any = field(default_factory=lambda: hashlib.sha256(b"texts v1"))

    @property
    def sha256(self) -> str:
        """Stands for the texts that were read, in order, wherever they lie and whatever holds them."""
        return str(self._digest.hexdigest())

    def read(self, text_key: str, problems: ProblemList, left_out: Counter[str]) -> Iterator[Document]:
        """The documents; those without text are counted in `left_out`.

        Args:
            text_key: Field of a record that holds its text. problems: Takes bad records. left_out: Added to.

        Raises:
            DataError: A file cannot be read, or a record has no text.
        """
        pattern, limit = split_limit(self.spec)
        for document in self._read_corpus(Path(pattern)) if self.corpus_source else _read_files(pattern, text_key, problems):
            if self.documents == limit:
                return
            self.documents += 1
            data = document.text.encode(errors="surrogatepass")
            self._digest.update(len(data).to_bytes(8, "little") + data)
            if document.text:
                yield document
            else:
                left_out["empty"] += 1

    def _read_corpus(self, directory: Path) -> Iterator[Document]:
        corpus = open_corpus(directory)
        source = corpus.source(self.corpus_source or "")
        tokenizer = MossTokenizer.load(directory / TOKENIZER_FOLDER)
        for shard in source.shards:
            for number in range(shard.documents):
                # The `<|endoftext|>` that closes it is no text.
                text = tokenizer.decode(shard.document(number).tolist()[:-1])
                language = language_of_text(text) if source.language == _UNDETERMINED else source.language
                yield Document(text, language, f"{shard} document {number}")

    def recorded(self) -> tuple[lineage.Source, list[lineage.Parent]]:
        """What was read, for the record of the evaluation."""
        pattern, _ = split_limit(self.spec)
        if self.corpus_source:
            found: CorpusSource = open_corpus(pattern).source(self.corpus_source)
            source = lineage.Source(self.name, self.sha256, self.documents, "evaluation", found.licence)
            return source, lineage.recorded_parent(Path(pattern), "data")
        paths = find_text_files(pattern)
        parents = [parent for path in paths for parent in lineage.recorded_parent(path, "data")]
        return lineage.Source(self.name, self.sha256, self.documents, "evaluation", lineage_kinds.licence_of(paths)), parents


def find_sources(data: Any) -> list[TextSource]:
    """The sources of `data`, none of which is read yet.

    Args:
        data: A path, a list of paths, or paths by name.

    Raises:
        DataError: A path is missing, or holds neither text nor a corpus.
    """
    listed = [data] if isinstance(data, str) else data
    named: list[tuple[str | None, str]] = list(data.items()) if isinstance(data, dict) else [(None, one) for one in listed]
    found: list[TextSource] = []
    for name, spec in named:
        pattern, _ = split_limit(spec)
        path = Path(pattern)
        if (path / FILE_NAME).is_file():
            sources = open_corpus(path).sources
            for one in sources:
                named_alone = name if len(sources) == 1 else f"{name}/{one}"
                found.append(TextSource(named_alone if name and named_alone else one, spec, one))
        else:
            try:
                find_text_files(pattern)
            except DataError as error:
                raise DataError(f"data={spec}: expected texts, or a corpus that scripts/prepare.py wrote: {error}") from None
            found.append(TextSource(name or path.name.split(".")[0] or pattern, spec))
    counts: Counter[str] = Counter()
    for source in found:
        counts[source.name] += 1
        if counts[source.name] > 1:
            source.name = f"{source.name}-{counts[source.name]}"
    return found


def _read_files(pattern: str, text_key: str, problems: ProblemList) -> Iterator[Document]:
    for path in find_text_files(pattern):
        if form_of(path) is None:
            for origin, text in read_texts(str(path), text_key):
                yield Document(text, language_of_text(text), origin)
            continue
        for record in read_piece(Piece(path), problems.add):
            text = text_of(record.value, record.origin, text_key)
            named = next((record.value[key] for key in ("language", "lang") if isinstance(record.value.get(key), str)), None)
            yield Document(text, named or language_of_text(text), record.origin)
