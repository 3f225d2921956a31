from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moss_train.data.corpus import Corpus, open_corpus, shard_paths
from moss_train.data.corpus_writer import ShardWriter, describe_corpus, write_description
from moss_train.errors import DataError

END = 99


def write(directory: Path, shards: dict[str, list[list[list[int]]]], vocab_size: int = 100) -> Corpus:
    """A corpus of given documents: source -> shards -> documents -> ids."""
    sources: dict[str, dict[str, Any]] = {}
    for source, contents in shards.items():
        entries = []
        for number, documents in enumerate(contents):
            with ShardWriter(directory, source, f"shard-{number:05d}", END) as shard:
                for ids in documents:
                    shard.append(np.array(ids, dtype=np.uint32), np.array([len(ids)]))
                record = shard.close({"bytes": shard.tokens})
            entries.append({"name": f"shard-{number:05d}"} | {key: record[key] for key in ("documents", "tokens", "bytes", "sha256")})
        summed = {what: sum(entry[what] for entry in entries) for what in ("documents", "tokens", "bytes")}
        sources[source] = {"language": "en", "licence": None, **summed, "fingerprint": "f", "counts": {}, "shards": entries}
    tokenizer = {"fingerprint": "a" * 64, "size": vocab_size, "vocab_size": 128, "endoftext": END}
    write_description(directory, describe_corpus(tokenizer, sources, {}, "inputs"))
    return open_corpus(directory)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write(tmp_path / "corpus", {"zh": [[[1, 2, 3], [4], []], [[5, 6]]], "en": [[[7]]]})


def test_counts_are_known_without_a_shard(corpus: Corpus) -> None:
    for path in corpus.directory.rglob("*.npy"):
        path.unlink()
    again = open_corpus(corpus.directory)
    assert (again.tokens, again.documents) == (12, 5)
    assert (again.sources["zh"].tokens, again.sources["zh"].documents, len(again.sources["zh"].shards)) == (10, 4, 2)


def test_every_document_is_closed(corpus: Corpus) -> None:
    shard = corpus.sources["zh"].shards[0]
    assert shard.read(0, shard.tokens).tolist() == [1, 2, 3, END, 4, END, END]
    assert shard.ends.tolist() == [4, 6, 7]
    assert [shard.document(number).tolist() for number in range(3)] == [[1, 2, 3, END], [4, END], [END]]


def test_windows_and_the_ends_within_them(corpus: Corpus) -> None:
    shard = corpus.sources["zh"].shards[0]
    ids, ends = shard.read(0, 7).tolist(), [4, 6, 7]
    for start in range(8):
        for end in range(start, 8):
            assert shard.read(start, end).tolist() == ids[start:end]
            assert shard.ends_within(start, end).tolist() == [one for one in ends if start < one <= end]
    assert [shard.document_of(token) for token in range(7)] == [0, 0, 0, 0, 1, 1, 2]
    for start, end in ((-1, 2), (3, 2), (0, 8)):
        with pytest.raises(IndexError):
            shard.read(start, end)


def test_tokens_of_a_source_are_found_across_shards(corpus: Corpus) -> None:
    source = corpus.sources["zh"]
    assert source.starts.tolist() == [0, 7, 10]
    assert [(source.locate(token)[0].name, source.locate(token)[1]) for token in (0, 6, 7, 9)] == [
        ("shard-00000", 0), ("shard-00000", 6), ("shard-00001", 0), ("shard-00001", 2),
    ]  # fmt: skip
    with pytest.raises(IndexError):
        source.locate(10)


def test_files_are_plain_npy_and_mapped(corpus: Corpus) -> None:
    shard = corpus.sources["en"].shards[0]
    paths = shard_paths(corpus.directory, "en", shard.name)
    for what, dtype in (("tokens", np.uint32), ("ends", np.int64)):
        array = np.load(paths[what], mmap_mode="r")
        assert isinstance(array, np.memmap)
        assert (array.dtype, array.ndim) == (dtype, 1)
    assert not shard.token_ids.flags.writeable


def test_nothing_is_left_of_a_shard_that_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "zh", "shard-00000", END) as shard:  # noqa: PT012
        shard.append(np.array([1], dtype=np.uint32), np.array([1]))
        raise RuntimeError
    assert list((tmp_path / "zh").iterdir()) == []


def test_the_tokenizer_is_held_against_the_corpus(corpus: Corpus) -> None:
    open_corpus(corpus.directory, "a" * 64)
    with pytest.raises(DataError, match=r"was made with the tokenizer aaaaaaaaaaaa .* is to be read with bbbbbbbbbbbb"):
        open_corpus(corpus.directory, "b" * 64)


def test_an_id_outside_of_the_vocabulary_is_refused_where_it_is_read(tmp_path: Path) -> None:
    shard = write(tmp_path / "corpus", {"zh": [[[1, 120, 3]]]}).sources["zh"].shards[0]
    assert shard.read(2, 4).tolist() == [3, END]
    with pytest.raises(DataError, match="token 1 is 120; expected an id below 100"):
        shard.read(0, 2)


def test_thousands_of_shards_open_at_once(tmp_path: Path) -> None:
    entries = [{"name": f"shard-{n:05d}", "documents": 1, "tokens": 1, "bytes": 1, "sha256": {}} for n in range(5000)]
    source = {"language": "en", "licence": None, "documents": 5000, "tokens": 5000, "bytes": 5000, "fingerprint": "", "counts": {}}
    tokenizer = {"fingerprint": "a", "size": 2, "vocab_size": 2, "endoftext": 1}
    tmp_path.joinpath("corpus.json").write_text(json.dumps(describe_corpus(tokenizer, {"en": {**source, "shards": entries}}, {}, "")))
    assert open_corpus(tmp_path).sources["en"].locate(4999)[0].name == "shard-04999"


def test_an_unfinished_corpus_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ".prepare").mkdir()
    with pytest.raises(DataError, match="has not been finished; give the same command"):
        open_corpus(tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        open_corpus(tmp_path / "nowhere")
