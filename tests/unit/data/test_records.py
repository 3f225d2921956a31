"""Reading records: every fault has a place and a name, and nothing is changed or dropped without a word."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from moss_train.data.records import MAX_LINE_BYTES, ProblemList, RecordError, find_files, read_records
from moss_train.errors import DataError, MossTrainError, UsageError


def values(spec: str | Path) -> list[object]:
    return [record.value for record in read_records(spec)]


GOOD = b'{"a": 1}\n'
FAULTS = [
    (b'{"a": 1', "bad_json"),
    (b"{'a': 1}", "bad_json"),
    (b'{"a": 1} {}', "bad_json"),
    (b'{"a": 1,}', "bad_json"),
    (b'{"a": "x\0"}', "bad_json"),
    (b'{"a": "\xff"}', "not_utf8"),
    (b'\xef\xbb\xbf{"a": 1}', "byte_order_mark"),
    (b'{"a": 1, "a": 2}', "duplicate_key"),
    (b'{"x": {"a": 1, "a": 1}}', "duplicate_key"),
    (b'{"a": NaN}', "not_a_number"),
    (b'{"a": -Infinity}', "not_a_number"),
    (b'{"a": "\\ud800"}', "lone_surrogate"),
    (b'{"a": "\\uDFFF x"}', "lone_surrogate"),
    (b"[" * 200_000 + b"]" * 200_000, "bad_json"),
    (b'{"a": ' + b"9" * 5000 + b"}", "bad_json"),
]


@pytest.mark.parametrize(("line", "code"), FAULTS, ids=[f"{code}-{place}" for place, (_, code) in enumerate(FAULTS)])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_fault_is_named_with_its_line(tmp_path: Path, line: bytes, code: str, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".json" and line.endswith(b"{}"):
        pytest.skip("objects may follow one another in a .json file")
    first = b"" if code == "byte_order_mark" and suffix == ".json" else GOOD
    path.write_bytes(first + line + b"\n" + GOOD)
    with pytest.raises(RecordError) as caught:
        values(path)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"{path}:{2 if first else 1}: {code}: ")
    assert caught.value.exit_code == 3


def test_bad_lines_can_be_collected_and_the_good_ones_kept(jsonl: Path) -> None:
    jsonl.write_bytes(GOOD + b"\n".join(line for line, _ in FAULTS) + b"\n" + GOOD)
    problems = ProblemList("skip", max_share=1.0)
    assert [record.value for record in read_records(jsonl, on_error=problems.add)] == [{"a": 1}, {"a": 1}]
    assert sum(problems.counts.values()) == len(FAULTS)
    problems.finish(good=2)
    assert f"{jsonl}:2: bad_json" in problems.describe()
    assert "totals: bad_json 7" in problems.describe()


def test_policies_for_bad_records() -> None:
    many = ProblemList()
    for number in range(30):
        many.add(RecordError(f"x:{number}", "bad_json", "..."))
    with pytest.raises(DataError, match=r"30 bad of 100 records(?s:.*)and 10 more(?s:.*)totals: bad_json 30"):
        many.finish(good=70)
    few = ProblemList("skip", max_share=0.1)
    few.add(RecordError("x:1", "bad_json", "..."))
    few.finish(good=9)
    with pytest.raises(DataError, match=r"1 bad of 9 records, more than the 10.0%"):
        few.finish(good=8)
    with pytest.raises(UsageError):
        ProblemList("ignore")


def test_lines_end_at_newlines_only(jsonl: Path) -> None:
    text = "a\u2028b\u0085c\x0bd"
    lines = json.dumps({"t": text}, ensure_ascii=False) + "\r\n\n  \n" + json.dumps({"t": "🙂"})
    jsonl.write_text(lines, encoding="utf-8", newline="")
    assert values(jsonl) == [{"t": text}, {"t": "🙂"}]
    assert [record.origin for record in read_records(jsonl)] == [f"{jsonl}:1", f"{jsonl}:4"]


def test_a_line_without_end_is_not_read_whole(jsonl: Path) -> None:
    with jsonl.open("wb") as file:
        file.write(b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}\n' + GOOD)
    problems = ProblemList()
    assert [record.value for record in read_records(jsonl, on_error=problems.add)] == [{"a": 1}]
    assert problems.counts == {"line_too_long": 1}


@pytest.mark.parametrize(
    ("text", "expected", "lines"),
    [
        ('{"a":\n 1}\n', [{"a": 1}], [1]),
        ('[\n {"a": 1},\n\n {"a": 2}\n]\n', [{"a": 1}, {"a": 2}], [2, 4]),
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}], [1, 2]),
        ('\n[{"a": 1}]', [{"a": 1}], [2]),
    ],
)
def test_json_files(tmp_path: Path, text: str, expected: list[object], lines: list[int]) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    records = list(read_records(path))
    assert [record.value for record in records] == expected
    assert [record.origin for record in records] == [f"{path}:{line}" for line in lines]


@pytest.mark.parametrize("text", ["[{}", "[{} {}]", "[{}] {}", '{"a": 1} ]', "[,]", "nonsense"])
def test_broken_json_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(RecordError, match="bad_json"):
        values(path)


def test_directories_globs_and_limits(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/10.jsonl", "a.json", "c.ndjson", ".hidden/x.jsonl", "notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"file": name}) + "\n" + ("" if name == "a.json" else json.dumps({"file": name + "+"}) + "\n"))
    everything = ["a.json", "b/10.jsonl", "b/10.jsonl+", "b/2.jsonl", "b/2.jsonl+", "c.ndjson", "c.ndjson+"]
    assert values(tmp_path) == [{"file": name} for name in everything]
    assert values(f"{tmp_path}#3") == [{"file": name} for name in everything[:3]]
    assert values(f"{tmp_path}/**/*.jsonl") == [{"file": name} for name in everything[1:5]]
    assert values(f"{tmp_path}/b/2.jsonl#1") == [{"file": "b/2.jsonl"}]
    assert len(values(f"{tmp_path}/b/2.jsonl#100")) == 2
    (tmp_path / "b/2.jsonl").write_bytes(GOOD + GOOD + b"{")
    assert len(values(f"{tmp_path}/b/2.jsonl#2")) == 2, "what comes after the limit is not read"
    odd = tmp_path / "odd#1[x].jsonl"
    odd.write_bytes(GOOD + GOOD)
    assert len(values(odd)) == 2, "a file whose name looks like a limit or a glob is itself"


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no such file or directory\. The nearest folder that exists is {tmp_path}, with: nothing"):
        values(tmp_path / "some" / "where.jsonl")
    with pytest.raises(DataError, match="this directory holds no file"):
        find_files(str(tmp_path))
    with pytest.raises(DataError, match="this glob holds no file"):
        find_files(f"{tmp_path}/*.jsonl")
    (tmp_path / "x.csv").write_bytes(b"a,b")
    with pytest.raises(DataError, match=r"'\.csv' are not read; expected one of \.jsonl"):
        values(tmp_path / "x.csv")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no records"):
        values(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="asks for no records"):
        values(f"{tmp_path}/empty.jsonl#0")


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_damaged_files_raise_nothing_but_our_errors(tmp_path: Path, suffix: str) -> None:
    good = b"".join(json.dumps({"chat": {"turn_1": {"Human": "é\U0001f642\ud83d"[:2] + str(n)}}}).encode() + b"\n" for n in range(3))
    path = tmp_path / f"rows{suffix}"
    chance = random.Random(0)
    outcomes = set()
    for _ in range(400):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            kind = chance.randrange(3)
            if kind == 0:
                data[at] = chance.randrange(256)
            elif kind == 1:
                del data[at : at + chance.randint(1, 20)]
            else:
                data[at:at] = bytes(data[chance.randrange(len(data)) :][:20])
        path.write_bytes(bytes(data))
        try:
            values(path)
            outcomes.add("read")
        except MossTrainError as error:
            outcomes.add(getattr(error, "code", "other"))
    assert {"read", "bad_json", "not_utf8"} <= outcomes
