"""The texts of `suite=perplexity`: sources, languages, and a hash that does not depend on where they lie."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from moss_train.data.records import ProblemList
from moss_train.errors import DataError
from moss_train.evaluate.documents import Document, TextSource, find_sources
from moss_train.evaluate.tasks.make_tasks import FOLDER, make


def read(source: TextSource, key: str = "text") -> list[Document]:
    return list(source.read(key, ProblemList(), Counter()))


def write(path: Path, records: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_languages_are_named_or_told_by_letters(tmp_path: Path) -> None:
    records = [{"text": "Hello there"}, {"text": "你好，世界"}, {"text": "x = 1", "language": "python"}, {"text": "Привет"}, {"text": ""}]
    path = write(tmp_path / "mixed.jsonl", records)
    (source,) = find_sources(str(path))
    left_out: Counter[str] = Counter()
    found = list(source.read("text", ProblemList(), left_out))
    assert [one.language for one in found] == ["en", "zh", "python", "other"]
    assert left_out == {"empty": 1}
    assert (source.name, source.documents) == ("mixed", 5)
    assert found[1].origin == f"{path}:2"


def test_sources_by_name_and_by_path(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a" / "x.jsonl", [{"text": "a"}]), write(tmp_path / "b" / "x.jsonl", [{"text": "b"}, {"text": "c"}])
    assert [source.name for source in find_sources([str(one), str(two)])] == ["x", "x-2"]
    named = find_sources({"first": str(one), "second": f"{two}#1"})
    assert [(source.name, [document.text for document in read(source)]) for source in named] == [("first", ["a"]), ("second", ["b"])]
    with pytest.raises(DataError, match=r"expected texts, or a corpus"):
        find_sources(str(tmp_path / "none.jsonl"))


def test_the_hash_is_of_the_texts_alone(tmp_path: Path) -> None:
    lines = write(tmp_path / "here" / "a.jsonl", [{"text": "a\n"}, {"text": "b"}])
    moved = write(tmp_path / "there" / "b.jsonl", [{"text": "a\n", "more": "x"}, {"text": "b"}])
    other = write(tmp_path / "there" / "c.jsonl", [{"text": "a"}, {"text": "\nb"}])
    hashes = []
    for path in (lines, moved, other):
        (source,) = find_sources(str(path))
        read(source)
        hashes.append(source.sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_text_files_and_other_keys(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("One text.\nStill it.\n", encoding="utf-8")
    assert [one.text for one in read(find_sources(str(tmp_path / "note.txt"))[0])] == ["One text.\nStill it.\n"]
    path = write(tmp_path / "other.jsonl", [{"body": "Hello"}])
    assert [one.text for one in read(find_sources(str(path))[0], "body")] == ["Hello"]
    with pytest.raises(DataError, match="Name the field: text_key"):
        read(find_sources(str(path))[0])


def test_the_bundled_tasks_are_what_makes_them() -> None:
    for name, content in make().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == content


def test_choices_differ_in_the_answer_alone() -> None:
    rows = [json.loads(line) for line in make()["moss_choice.jsonl"].splitlines()]
    assert len(rows) >= 100
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert 0 <= row["gold"] < 4
    # No place holds the right answer much more often than the others.
    assert max(Counter(row["gold"] for row in rows).values()) < 0.4 * len(rows)
