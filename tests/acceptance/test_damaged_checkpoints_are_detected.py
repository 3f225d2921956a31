"""Whatever bit of a checkpoint changes, and wherever a file ends early: it is seen, named, and the checkpoint before is used."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from moss_train.train import manifest as manifests
from tests.campaigns import record
from tests.checkpoints import differences, flip_bit, names, save

SEED = 20_260


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A directory with the checkpoints of steps 1 and 2."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    return tmp_path


def check_rejected(run: Path, name: str) -> None:
    """The newer checkpoint is rejected for the file, and the older one is used."""
    used = manifests.newest_usable(run)
    assert used is not None
    path, manifest, rejected = used
    assert (path.name, manifest.step) == ("step-00000001", 1), f"{name}: the damaged checkpoint is used"
    assert len(rejected) == 1
    assert rejected[0].startswith(f"step-00000002: {name} "), rejected


def check_good(run: Path) -> None:
    """The newer checkpoint is used: what the test damaged, it has put back, so that it is the damage which was detected."""
    used = manifests.newest_usable(run)
    assert used is not None
    assert (used[1].step, used[2]) == (2, [])
    assert differences(used[0], 2) == []


def choose_bits(sizes: dict[str, int], flips: int, least: int, chance: random.Random) -> list[tuple[str, int]]:
    """(file, bit): `least` in every file, the rest uniform over the bits of all files together."""
    chosen = [(name, chance.randrange(8 * size)) for name, size in sizes.items() for _ in range(least)]
    rest = flips - len(chosen)
    assert rest > 0
    ends, total = [], 0
    for name, size in sizes.items():
        total += 8 * size
        ends.append((total, name, size))
    for bit in (chance.randrange(total) for _ in range(rest)):
        end, name, size = next(item for item in ends if bit < item[0])
        chosen.append((name, bit - (end - 8 * size)))
    chance.shuffle(chosen)
    return chosen


@pytest.mark.parametrize(("flips", "least"), [(300, 10), pytest.param(10_000, 50, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_detected(run: Path, flips: int, least: int) -> None:
    started = time.perf_counter()
    checkpoint = run / "step-00000002"
    sizes = {name: (checkpoint / name).stat().st_size for name in names(checkpoint)}
    assert len(sizes) == 12
    hit: Counter[str] = Counter()
    for name, bit in choose_bits(sizes, flips, least, random.Random(SEED)):
        flip_bit(checkpoint / name, bit)
        check_rejected(run, name)
        flip_bit(checkpoint / name, bit)
        hit[name] += 1
    check_good(run)
    assert sum(hit.values()) == flips
    assert min(hit[name] for name in sizes) >= least, "each file is hit"
    record(
        f"bit-flips-{flips}",
        {
            "seed": SEED,
            "flips": flips,
            "detected": sum(hit.values()),
            "undetected": 0,
            "flips_by_file": dict(sorted(hit.items())),
            "bytes_by_file": sizes,
            "seconds": round(time.perf_counter() - started, 1),
        },
    )


@pytest.mark.slow
def test_every_single_bit_of_the_manifest_and_the_small_files_is_detected(run: Path) -> None:
    started = time.perf_counter()
    checkpoint = run / "step-00000002"
    hit: Counter[str] = Counter()
    for name in names(checkpoint):
        size = (checkpoint / name).stat().st_size
        if size > 2000:
            continue
        for bit in range(8 * size):
            flip_bit(checkpoint / name, bit)
            check_rejected(run, name)
            flip_bit(checkpoint / name, bit)
            hit[name] += 1
    check_good(run)
    assert manifests.FILE_NAME in hit
    record(
        "bit-flips-of-small-files",
        {
            "flips": hit.total(),
            "detected": hit.total(),
            "undetected": 0,
            "flips_by_file": dict(sorted(hit.items())),
            "seconds": round(time.perf_counter() - started, 1),
        },
    )


@pytest.mark.parametrize(("name", "seen"), [("optimizer-00001.safetensors", False), (manifests.FILE_NAME, True)])
def test_without_hashes_a_flipped_bit_would_go_unseen(run: Path, monkeypatch: pytest.MonkeyPatch, name: str, seen: bool) -> None:
    """The check can fail: sizes alone are not enough, and safetensors opens the damaged file without a complaint."""
    monkeypatch.setattr(manifests, "problems_of_files", lambda *_: [])
    path = run / "step-00000002" / name
    flip_bit(path, 8 * path.stat().st_size - 3)
    if seen:
        check_rejected(run, name)
        return
    with pytest.raises(AssertionError, match="the damaged checkpoint is used"):
        check_rejected(run, name)
    assert len(differences(run / "step-00000002", 2)) == 1


def test_every_file_that_ends_early_is_detected(run: Path) -> None:
    checkpoint = run / "step-00000002"
    cuts: Counter[str] = Counter()
    for name in names(checkpoint):
        content = (checkpoint / name).read_bytes()
        for length in sorted({*range(0, len(content), 4096), len(content) - 1}):
            os.truncate(checkpoint / name, length)
            check_rejected(run, name)
            (checkpoint / name).write_bytes(content)
            cuts[name] += 1
    check_good(run)
    assert len(cuts) == 12
    assert cuts["optimizer-00001.safetensors"] > 10
    assert cuts["config.json"] == 2
    record("truncations", {"cuts": cuts.total(), "detected": cuts.total(), "undetected": 0, "cuts_by_file": dict(sorted(cuts.items()))})


def test_every_file_that_is_gone_or_longer_is_detected(run: Path) -> None:
    checkpoint = run / "step-00000002"
    for name in names(checkpoint):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).unlink()
        check_rejected(run, name)
        for more in (b"\0", b"\n", b"\0" * 4096):
            (checkpoint / name).write_bytes(content + more)
            check_rejected(run, name)
        (checkpoint / name).write_bytes(content)
    check_good(run)


def test_files_that_changed_places_are_detected(run: Path) -> None:
    """Each is good by itself, and of the right size."""
    for name in names(run / "step-00000002"):
        older, newer = run / "step-00000001" / name, run / "step-00000002" / name
        if name == manifests.FILE_NAME or older.read_bytes() == newer.read_bytes():
            continue
        content = newer.read_bytes()
        newer.write_bytes(older.read_bytes())
        check_rejected(run, name)
        newer.write_bytes(content)
    check_good(run)
