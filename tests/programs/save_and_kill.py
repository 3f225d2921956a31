"""Kills processes while they save and load checkpoints, and looks at what they leave: save_and_kill.py DIRECTORY --kills N --seed S.

Each process is a fork of this one. It goes on from the newest good checkpoint of the directory and saves one after another: it writes,
commits, rotates (two are kept), and every now and then loads. It dies by SIGKILL

- at a planned place: the n-th time that it comes to one of `PLACES`, before it, half way through a write, or after it;
- or at any time at all, after a random delay.

What a process has committed it notes in shared memory, so that this one knows what must be there after the kill:

- `lost`: of the two newest that were good, each that is not there any more, or no longer good; or no usable checkpoint at all;
- `older`: the checkpoint that would be used is older than the last one that was committed;
- `wrong_start`: a process went on from another checkpoint than the newest good one;
- `different`: tensors of the one that would be used are not, bit for bit, those that were saved;
- `damaged`: a directory under a final name that is not a good checkpoint;
- `leftovers`: anything that is neither a checkpoint nor removed by `manifest.clean`;
- `foreign`: the checkpoint of another run, in the same directory, was touched.

All must be zero. The campaign fails as well where kills did not land at every one of `PLACES`. A SIGKILL leaves the page cache to the
kernel, so this says nothing of power cuts: the order of writes and syncs that they need is tested in tests/unit/train/test_manifest.py.

`--mutation` breaks the program in one way, to show that the campaign sees it.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import stat
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from moss_train import files
from moss_train.errors import CheckpointError
from moss_train.files import FileEntry
from moss_train.train import manifest as manifests
from moss_train.train.manifest import DamagedError, Manifest, Verified
from tests.checkpoints import OTHER_RUN, RUN, differences, flip_bit, partial_name, save, write

PLACES = {
    "first write to a file": 40,
    "later write to a file": 70,
    "sync of a file": 40,
    "sync of a directory": 12,
    "rename of a new checkpoint": 4,
    "rename of a damaged one aside": 1,
    "rename of an old one by rotation": 4,
    "removal of a file by rotation": 40,
    "removal of what a crash left": 10,
    "reading a file to verify it": 24,
}
"""Where a process can be killed -> how often one comes there within a few saves."""

ELSEWHERE = "elsewhere"
WHEN = ("before", "halfway", "after", "random")
KEEP = 2
FOREIGN = 1
"""Step of a checkpoint of another run, in the same directory."""
SAVES = 6
"""A process that was not killed within so many ends by itself."""
MUTATIONS = ("no-rename", "rename-before-manifest", "no-verification", "old-first")


@dataclass
class Plan:
    """Where a process dies; `place` is None where chance decides."""

    place: str | None
    ordinal: int
    when: str


class Shared:
    """What a process leaves behind when it is killed; each value is -1 until it is set.

    `resumed` is the step gone on from; `began` and `committed` are the last whose saving began, and whose commit returned; `place` is the
    number of one of `PLACES`.
    """

    _NAMES = ("resumed", "began", "committed", "place")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.reset()

    def reset(self) -> None:
        """Before a process starts."""
        for name in self._NAMES:
            self[name] = -1

    def __getitem__(self, name: str) -> int:
        """The value of that name."""
        return int(struct.unpack_from("q", self._memory, 8 * self._NAMES.index(name))[0])

    def __setitem__(self, name: str, value: int) -> None:
        """Sets the value of that name."""
        struct.pack_into("q", self._memory, 8 * self._NAMES.index(name), value)

    @property
    def place(self) -> str:
        """What the process was doing to the disk."""
        return ELSEWHERE if self["place"] < 0 else list(PLACES)[self["place"]]


class Killer:
    """Stands before what touches the disk, and kills the process where the plan says."""

    def __init__(self, plan: Plan, shared: Shared):
        self._plan, self._shared = plan, shared
        self._calls: Counter[str] = Counter()

    def install(self) -> None:
        """Takes the place of the functions of `moss_train.files`."""
        write, sync, rename, remove, read = files.write_piece, files.sync, files.rename, files.remove, files.hash_file

        def write_piece(descriptor: int, piece: memoryview) -> int:
            first = os.lseek(descriptor, 0, os.SEEK_CUR) == 0
            place = "first write to a file" if first else "later write to a file"
            return int(self._at(place, lambda: write(descriptor, piece), lambda: write(descriptor, piece[: len(piece) // 2])))

        def sync_(descriptor: int) -> None:
            place = "sync of a directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync of a file"
            self._at(place, lambda: sync(descriptor))

        def rename_(source: Path, target: Path) -> None:
            if target.name.startswith(files.TRASH_PREFIX):
                place = "rename of an old one by rotation"
            else:
                place = "rename of a damaged one aside" if ".damaged-" in target.name else "rename of a new checkpoint"
            self._at(place, lambda: rename(source, target))

        def remove_(path: Path) -> None:
            place = "removal of a file by rotation" if self._shared["began"] >= 0 else "removal of what a crash left"
            self._at(place, lambda: remove(path))

        def hash_file(path: Path, progress: Callable[[], None] | None = None) -> FileEntry:
            entry: FileEntry = self._at("reading a file to verify it", lambda: read(path, progress))
            return entry

        files.write_piece, files.sync, files.rename, files.remove, files.hash_file = write_piece, sync_, rename_, remove_, hash_file

    def _at(self, place: str, real: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        self._shared["place"] = list(PLACES).index(place)
        self._calls[place] += 1
        due = self._plan.place == place and self._plan.ordinal == self._calls[place]
        if due and self._plan.when == "before":
            die()
        if due and self._plan.when == "halfway" and half is not None:
            half()
            die()
        result = real()
        if due:
            die()
        self._shared["place"] = -1
        return result


def die() -> NoReturn:
    """Ends this process without a word."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def live(directory: Path, plan: Plan, shared: Shared, seed: int, mutation: str | None) -> None:
    """What a process does: goes on from the newest good checkpoint, and saves one after another."""
    chance = random.Random(seed)
    if mutation is not None:
        mutate(mutation)
    Killer(plan, shared).install()
    manifests.clean(directory)
    verified = Verified()
    used = manifests.newest_usable(directory)
    assert used is not None, "there is at least the checkpoint of another run"
    verified.remember(used[0], used[1])
    shared["resumed"] = used[1].step
    first = used[1].step + 1
    for step in range(first, first + SAVES):
        shared["began"] = step
        if mutation == "old-first":
            manifests.rotate(directory, 0, RUN, verified)
        partial = directory / (manifests.step_name(step) if mutation == "no-rename" else partial_name(step))
        if mutation == "no-rename":
            shutil.rmtree(partial, ignore_errors=True)
        written = write(partial, step)
        path = manifests.commit(partial, written)
        shared["committed"] = step
        verified.remember(path, written)
        if chance.random() < 0.3:
            # As a process that has just started knows nothing of the others.
            verified = Verified()
        manifests.rotate(directory, KEEP, RUN, verified)
        if chance.random() < 0.3:
            loaded = manifests.newest_usable(directory)
            assert loaded is not None
            assert loaded[1].step == step, f"step {loaded[1].step} is loaded, not {step}"


def mutate(mutation: str) -> None:
    """Breaks the way in which checkpoints are saved or chosen."""

    def commit_in_place(partial: Path, manifest: Manifest) -> Path:
        files.write_new(partial / manifests.FILE_NAME, manifest.encode())
        return partial

    def commit_early(partial: Path, manifest: Manifest) -> Path:
        target = partial.with_name(manifests.step_name(manifest.step))
        shutil.rmtree(target, ignore_errors=True)
        files.rename(partial, target)
        files.write_new(target / manifests.FILE_NAME, manifest.encode())
        return target

    if mutation == "no-rename":
        manifests.commit = commit_in_place
    elif mutation == "rename-before-manifest":
        manifests.commit = commit_early
    elif mutation == "no-verification":
        manifests.problems_of_files = lambda *_: []


@dataclass
class Campaign:
    """One directory, and what was killed in it.

    Attributes:
        must_have: Steps whose checkpoints are good, and must be found so after the next kill.
        may_be_damaged: A step that this program damaged itself.
        faults: Kind -> number; see the module.
        landed: Place -> when -> number of kills.
    """

    directory: Path
    seed: int
    mutation: str | None = None
    must_have: list[int] = field(default_factory=list)
    may_be_damaged: int | None = None
    commits: int = 0
    ended_alone: int = 0
    inside_a_save: int = 0
    moved_aside: int = 0
    lines: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    landed: dict[str, Counter[str]] = field(default_factory=lambda: {place: Counter() for place in (*PLACES, ELSEWHERE)})

    def run(self, kills: int) -> None:
        """Starts processes until so many of them were killed."""
        chance = random.Random(self.seed)
        shared = Shared()
        places = list(PLACES)
        chance.shuffle(places)
        foreign = save(self.directory, FOREIGN, OTHER_RUN)
        self._foreign = {path.name: path.read_bytes() for path in foreign.iterdir()}
        number = planned = 0
        while sum(map(Counter.total, self.landed.values())) < kills:
            # Two planned ones for each at random, of those that landed: how many end before their time depends on the machine.
            at_random = sum(counts["random"] for counts in self.landed.values())
            place = None if 3 * at_random < sum(map(Counter.total, self.landed.values())) else places[planned % len(places)]
            planned += place is not None
            number += 1
            if number > 20 * kills + 100:
                self._fault("error", "the processes are not killed")
                return
            plan = Plan(place, 0, "random")
            if place is not None:
                when = chance.choice(WHEN[:3] if "write" in place else ("before", "after"))
                plan = Plan(place, chance.randint(1, PLACES[place]), when)
            child_seed, delay = chance.randrange(2**32), chance.uniform(0.0, 0.12)
            self._prepare(plan, chance)
            shared.reset()
            process = os.fork()
            if process == 0:
                self._be_the_child(plan, shared, child_seed)
            if place is None:
                time.sleep(delay)
                os.kill(process, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            if code == 0:
                self.ended_alone += 1
            elif code == -signal.SIGKILL:
                self.landed[shared.place][plan.when] += 1
                self.inside_a_save += shared["began"] > shared["committed"]
            else:
                self._fault("error", f"a process ended with code {code}")
            self._examine(shared)
            if self.faults and self.mutation is not None:
                return

    def _be_the_child(self, plan: Plan, shared: Shared, seed: int) -> NoReturn:
        code = 3
        try:
            live(self.directory, plan, shared, seed, self.mutation)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _prepare(self, plan: Plan, chance: random.Random) -> None:
        """Makes what some places need: a damaged newest checkpoint, or something a crash left."""
        if plan.place == "rename of a damaged one aside" and len(self.must_have) >= 2:
            step = self.must_have.pop()
            path = chance.choice(sorted((self.directory / manifests.step_name(step)).iterdir()))
            flip_bit(path, chance.randrange(8 * path.stat().st_size))
            self.may_be_damaged = step
        elif plan.place == "removal of what a crash left" and self.must_have:
            step = self.must_have[-1]
            shutil.copytree(self.directory / manifests.step_name(step), self.directory / partial_name(step + 1))

    def _examine(self, shared: Shared) -> None:
        """Holds what is there against what must be."""
        expected = self.must_have[-1] if self.must_have else FOREIGN
        if shared["resumed"] not in (-1, expected):
            self._fault("wrong_start", f"a process went on from step {shared['resumed']}, not from {expected}")
        last = max([shared["committed"], *self.must_have])
        if shared["committed"] >= 0:
            self.must_have += range(expected + 1, shared["committed"] + 1)
            self.commits += shared["committed"] - expected
            if self.may_be_damaged in self.must_have:
                self.may_be_damaged = None
        self.must_have = self.must_have[-KEEP:]
        self._examine_used(last, max(last, shared["began"]))
        good = []
        manifests.clean(self.directory)
        for step, path in manifests.committed(self.directory):
            try:
                if manifests.verify(path).run_id == RUN:
                    good.append(step)
            except DamagedError as error:
                if step != self.may_be_damaged:
                    self._fault("damaged", f"{path.name}: {error}")
        for step in self.must_have:
            if step not in good:
                self._fault("lost", f"step {step} is gone")
        for path in list(self.directory.iterdir()):
            if ".damaged-" in path.name:
                self.moved_aside += 1
                shutil.rmtree(path)
            elif path not in [found for _, found in manifests.committed(self.directory)]:
                self._fault("leftovers", path.name)
        foreign = self.directory / manifests.step_name(FOREIGN)
        if not foreign.is_dir() or {path.name: path.read_bytes() for path in foreign.iterdir()} != self._foreign:
            self._fault("foreign", "the checkpoint of another run was touched")
        if self.may_be_damaged is not None:
            shutil.rmtree(self.directory / manifests.step_name(self.may_be_damaged), ignore_errors=True)
            self.may_be_damaged = None
        self.must_have = sorted(good)

    def _examine_used(self, last: int, newest: int) -> None:
        """The checkpoint that a new process would use; asked before anything is cleaned."""
        try:
            used = manifests.newest_usable(self.directory)
        except CheckpointError as error:
            self._fault("lost", str(error))
            return
        if used is None:
            self._fault("lost", "there is no checkpoint")
            return
        path, manifest, _ = used
        if manifest.run_id != RUN:
            if last >= 0:
                self._fault("lost", "that of another run would be used")
            return
        if not last <= manifest.step <= newest:
            self._fault("older", f"step {manifest.step} would be used, {last} was committed")
        try:
            different = differences(path, manifest.step)
        except Exception as error:
            different = [f"{type(error).__name__}: {error}"]
        if different:
            self._fault("different", f"{path.name}: {', '.join(different)}")

    def _fault(self, kind: str, line: str) -> None:
        self.faults[kind] += 1
        self.lines.append(f"{kind}: {line}")

    def summary(self) -> dict[str, Any]:
        """The figures."""
        kinds = ("lost", "older", "wrong_start", "different", "damaged", "leftovers", "foreign", "error")
        return {
            "seed": self.seed,
            "kills": sum(map(Counter.total, self.landed.values())),
            "kills_planned": sum(sum(counts[when] for when in WHEN[:3]) for counts in self.landed.values()),
            "kills_at_random": sum(counts["random"] for counts in self.landed.values()),
            "kills_between_the_first_byte_of_a_checkpoint_and_its_commit": self.inside_a_save,
            "commits": self.commits,
            **{kind: self.faults[kind] for kind in kinds},
            "damaged_by_the_test_and_moved_aside": self.moved_aside,
            "ended_before_their_place": self.ended_alone,
            "places_without_a_kill": [place for place in PLACES if not self.landed[place]],
            "landed": {place: {when: counts[when] for when in WHEN if counts[when]} for place, counts in self.landed.items()},
            "faults": self.lines[:20],
        }


def main() -> int:
    """Runs the campaign; 0 where nothing was lost and every place was hit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kills", type=int, default=700)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutation", choices=MUTATIONS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.directory.mkdir(parents=True)
    started = time.perf_counter()
    campaign = Campaign(arguments.directory, arguments.seed, arguments.mutation)
    campaign.run(arguments.kills)
    summary = campaign.summary() | {"seconds": round(time.perf_counter() - started, 1)}
    print(json.dumps(summary, indent=1))
    return int(bool(campaign.faults or summary["places_without_a_kill"]))


if __name__ == "__main__":
    sys.exit(main())
