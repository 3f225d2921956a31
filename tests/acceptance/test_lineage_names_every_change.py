"""Whatever bit of a family changes, `lineage verify` names the file; and a family that was copied or moved is good."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from moss_train.artifacts import lineage, lineage_tool, lineage_verify
from moss_train.artifacts.lineage_verify import verify
from moss_train.data.tokenizer import MossTokenizer
from tests.campaigns import record
from tests.families import Family, make

SEED = 20_261
FLIPS = 10_000


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Tokenizer, converted data, rendered data, checkpoint, export, eight-bit variant, evaluation; and a base made elsewhere."""
    return make(tmp_path_factory.mktemp("family") / "family")


def files_of(family: Family) -> list[tuple[Path, Path]]:
    """(artefact, file) of all that an artefact consists of, its record included."""
    found = [
        (artefact, path) for artefact in family.recorded if artefact.is_dir() for path in sorted(artefact.rglob("*")) if path.is_file()
    ]
    return [*found, (family.data, family.data), (family.data, lineage.record_path(family.data))]


def check_named(family: Family, artefact: Path, path: Path, from_below: bool) -> None:
    """The file is named, as one that is changed, and nothing else is."""
    base = artefact if artefact.is_dir() else artefact.parent
    report = verify(family.evaluation) if from_below else verify(artefact, ancestors=False)
    name = path.relative_to(base).as_posix()
    named = [(problem.artefact, problem.file, problem.kind) for problem in report.problems]
    assert named == [(artefact, name, "changed")], f"{path}: the change is not named; found {report.problems}"


def flip(path: Path, content: bytes, bit: int) -> None:
    """Writes the content with one bit inverted."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


def test_every_one_of_ten_thousand_flipped_bits_is_named(family: Family) -> None:
    """Half of the flips are spread evenly over the files, so that small ones are hit as often; half over all bits together. One in twenty
    is verified from the last artefact of the family, which has the others as ancestors."""
    started = time.perf_counter()
    chance = random.Random(SEED)
    files = files_of(family)
    contents = {path: path.read_bytes() for _, path in files}
    assert len(files) > 30
    weights = [len(contents[path]) for _, path in files]
    picks = [files[number % len(files)] for number in range(FLIPS // 2)] + chance.choices(files, weights, k=FLIPS - FLIPS // 2)
    ancestors = {path.resolve() for path, _ in verify(family.evaluation).checked}
    hit: Counter[str] = Counter()
    for number, (artefact, path) in enumerate(picks):
        flip(path, contents[path], chance.randrange(8 * len(contents[path])))
        check_named(family, artefact, path, from_below=number % 20 == 0 and artefact.resolve() in ancestors)
        path.write_bytes(contents[path])
        hit[path.relative_to(family.root).as_posix().split("-a0fa")[0]] += 1
    for artefact in family.recorded:
        assert verify(artefact).problems == [], "what was flipped has been put back: it is the flips that were named"
    assert hit.total() == FLIPS
    summary = {"seed": SEED, "flips": FLIPS, "named": FLIPS, "files": len(files), "bytes": sum(weights)}
    record("lineage-bit-flips", {**summary, "seconds": round(time.perf_counter() - started, 1)})


def test_every_bit_of_a_record_is_named(family: Family) -> None:
    """Whitespace, keys, numbers: a record has one spelling. Every byte of it, in a bit chosen by its place."""
    artefact = family.tokenizer
    path = artefact / lineage.FILE_NAME
    content = path.read_bytes()
    for place in range(len(content)):
        flip(path, content, 8 * place + place % 8)
        check_named(family, artefact, path, from_below=False)
    path.write_bytes(content)
    assert verify(artefact).problems == []


def test_without_hashes_a_flip_would_go_unseen(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail."""
    path = family.export / "model-00002-of-00003.safetensors"
    content = path.read_bytes()
    flip(path, content, 8 * len(content) - 3)
    monkeypatch.setattr(lineage_verify, "hash_all", lambda paths: [])
    with pytest.raises(AssertionError, match="the change is not named"):
        check_named(family, family.export, path, from_below=False)
    path.write_bytes(content)


def test_without_its_spelling_a_record_could_change_unseen(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail here too: JSON reads the same with another space."""
    path = family.export / lineage.FILE_NAME
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\n ", b"\n\t", 1))
    check_named(family, family.export, path, from_below=False)
    monkeypatch.setattr(lineage_verify, "spell", lambda raw: path.read_bytes())
    with pytest.raises(AssertionError, match="the change is not named"):
        check_named(family, family.export, path, from_below=False)
    path.write_bytes(content)


def command(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and output of `lineage verify`."""
    capsys.readouterr()
    code = lineage_tool.main(["verify", *arguments])
    return code, capsys.readouterr().out


def test_the_command_names_what_was_done_to_a_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A swapped tokenizer, a replaced parent, an extra file; and nothing at all where it was copied or moved."""
    family = make(tmp_path / "family")
    original = str(family.evaluation)
    assert command(original, str(family.variant), capsys=capsys)[0] == 0

    shutil.copytree(family.root, tmp_path / "mount" / "copies" / "copy")
    copy = family.at(tmp_path / "mount" / "copies" / "copy")
    code, shown = command(str(copy.root), capsys=capsys)
    assert code == 0, shown
    assert shown.count("all good") == len(family.recorded)
    (tmp_path / "moved").mkdir()
    copy.root.rename(tmp_path / "moved" / "family")
    assert command(str(tmp_path / "moved" / "family"), capsys=capsys)[0] == 0

    content = (family.export / "tokenizer.json").read_bytes()
    MossTokenizer.train(["quite another text"] * 3, 300).save(family.tokenizer)
    code, shown = command(original, capsys=capsys)
    assert code == 4
    assert "changed: tokenizer.json is changed" in shown
    shutil.rmtree(family.tokenizer)
    shutil.copytree(tmp_path / "moved" / "family" / "tokenizer", family.tokenizer)
    assert (family.export / "tokenizer.json").read_bytes() == content

    shutil.copy(tmp_path / "moved" / "family" / "evaluation" / "results.json", family.export / "results.json")
    code, shown = command(original, capsys=capsys)
    assert code == 4
    assert "unlisted: results.json is unlisted" in shown
    (family.export / "results.json").unlink()
    assert command(original, capsys=capsys)[0] == 0

    other = make(tmp_path / "another" / "family", seed=8)
    shutil.rmtree(family.export)
    shutil.copytree(other.export, family.export)
    code, shown = command(original, capsys=capsys)
    assert code == 4
    assert f"replaced: {family.export} is no longer the parent export (model) of evaluation" in shown
