"""Any order of saving, dying, damage, a full disk, rotating and resuming: no good checkpoint is lost that the test left alone.

The model is a set of steps: those that were committed, less those that the test damaged or deleted, less those that rotation may remove.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from moss_train import files
from moss_train.errors import CheckpointError
from moss_train.train import manifest as manifests
from moss_train.train.manifest import DamagedError, Verified
from tests.checkpoints import OTHER_RUN, RUN, SMALL, change, differences, flip_bit, names, save

KEEP = 2
FOREIGN = 4
"""Step of the other run's checkpoint."""
CALLS = ("write_piece", "sync", "rename", "remove")


class Killed(BaseException):
    """Stands for SIGKILL: nothing that comes after it reaches the disk."""


@contextlib.contextmanager
def broken(call: Callable[[str], None]) -> Iterator[None]:
    """Runs `call`, with the name, before each of the functions that change the disk."""
    real = {name: getattr(files, name) for name in CALLS}

    def stand_in(name: str) -> Callable[..., Any]:
        def replaced(*arguments: Any) -> Any:
            call(name)
            return real[name](*arguments)

        return replaced

    for name in CALLS:
        setattr(files, name, stand_in(name))
    try:
        yield
    finally:
        for name in CALLS:
            setattr(files, name, real[name])


class CheckpointMachine(RuleBasedStateMachine):
    """One run and its directory, in which a checkpoint of another run lies too."""

    def __init__(self) -> None:
        super().__init__()
        self._home = tempfile.TemporaryDirectory(prefix="checkpoints-")
        self.directory = Path(self._home.name)
        self.verified = Verified()
        self.good: set[int] = set()
        """Of this run."""
        self.step = 0

    def teardown(self) -> None:
        self._home.cleanup()

    @initialize()
    def begin(self) -> None:
        path = save(self.directory, FOREIGN, OTHER_RUN, SMALL)
        self.foreign = {item.name: item.read_bytes() for item in path.iterdir()}
        self.restart()

    # What a run does

    @rule(steps=st.integers(1, 3), rotating=st.booleans())
    def save(self, steps: int, rotating: bool) -> None:
        self.step += steps
        if self.refused_as_foreign():
            return
        path = save(self.directory, self.step, RUN, SMALL)
        self.verified.remember(path, manifests.read_manifest(path))
        self.good.add(self.step)
        if rotating:
            self.rotate()

    @rule()
    def rotate(self) -> None:
        manifests.rotate(self.directory, KEEP, RUN, self.verified)
        assert self.good <= {step for step, _ in manifests.committed(self.directory)} | set(sorted(self.good)[:-KEEP])
        self.good = set(sorted(self.good)[-KEEP:])

    @rule()
    def restart(self) -> None:
        """What a new process does."""
        self.verified = Verified()
        manifests.clean(self.directory)
        assert names(self.directory) == sorted(names_of(self.directory)), "nothing partial is left"
        used = self.check_used()
        self.step = used if used is not None else 0

    # What goes wrong

    @rule(steps=st.integers(1, 3), place=st.integers(1, 60), rotating=st.booleans())
    def killed(self, steps: int, place: int, rotating: bool) -> None:
        left = place

        def die(_: str) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed

        self.step += steps
        if self.refused_as_foreign():
            return
        path = None
        with broken(die), contextlib.suppress(Killed):
            path = save(self.directory, self.step, RUN, SMALL)
        if path is not None or self.is_good(self.step):
            self.good.add(self.step)
        if path is not None and rotating:
            with broken(die), contextlib.suppress(Killed):
                manifests.rotate(self.directory, KEEP, RUN, self.verified)
            self.good = {step for step in self.good if step in sorted(self.good)[-KEEP:] or self.is_good(step)}
        self.restart()

    @rule(steps=st.integers(1, 3), room=st.integers(0, 40))
    def disk_is_full(self, steps: int, room: int) -> None:
        """From the n-th write on; the process lives, and does not count the step as saved."""
        left = room

        def refuse(name: str) -> None:
            nonlocal left
            if name == "write_piece":
                left -= 1
                if left < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")

        self.step += steps
        if self.refused_as_foreign():
            return
        error: OSError | None = None
        try:
            with broken(refuse):
                save(self.directory, self.step, RUN, SMALL)
            self.good.add(self.step)
        except OSError as caught:
            error = caught
            for path in self.directory.glob("step-*.tmp-*"):
                shutil.rmtree(path)
        assert error is None or files.is_disk_full(error)

    @precondition(lambda self: self.good)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.good)), label="step")
        checkpoint = self.directory / manifests.step_name(step)
        path = checkpoint / data.draw(st.sampled_from(names(checkpoint)), label="file")
        way = data.draw(st.sampled_from(["flip", "cut", "delete"]), label="way")
        self.spoil(step, path.name, way, data.draw(st.integers(0, 8 * path.stat().st_size - 1), label="bit"))

    @precondition(lambda self: self.good)
    @rule()
    def newest_is_deleted_by_hand(self) -> None:
        step = max(self.good)
        shutil.rmtree(self.directory / manifests.step_name(step))
        self.good.remove(step)

    def spoil(self, step: int, name: str, way: str, bit: int) -> None:
        """Damages a file: at a bit, or from it on, or all of it."""
        path = self.directory / manifests.step_name(step) / name
        if way == "flip":
            flip_bit(path, bit)
        elif way == "cut":
            change(path, lambda: path.write_bytes(path.read_bytes()[: bit // 8]))
        else:
            path.unlink()
        self.good.remove(step)

    # What must hold

    @invariant()
    def what_was_committed_is_there(self) -> None:
        if hasattr(self, "foreign"):
            self.check_used()
            assert all(self.is_good(step) for step in self.good)

    @invariant()
    def the_other_runs_checkpoint_is_untouched(self) -> None:
        if hasattr(self, "foreign"):
            path = self.directory / manifests.step_name(FOREIGN)
            assert {item.name: item.read_bytes() for item in path.iterdir()} == self.foreign

    def check_used(self) -> int | None:
        """The step that would be gone on from: the newest good one of either run."""
        used = manifests.newest_usable(self.directory)
        assert used is not None
        path, manifest, rejected = used
        assert manifest.step == max([FOREIGN, *self.good])
        assert [line.split(":")[0] for line in rejected] == [
            path.name for step, path in manifests.committed(self.directory) if step > manifest.step
        ]
        if manifest.run_id != RUN:
            return None
        assert differences(path, manifest.step, SMALL) == []
        return manifest.step

    def is_good(self, step: int) -> bool:
        """Whether the checkpoint of this step is there, every byte of it right."""
        try:
            return manifests.verify(self.directory / manifests.step_name(step)).run_id == RUN
        except DamagedError:
            return False

    def refused_as_foreign(self) -> bool:
        """At the step of the other run's checkpoint there is no saving."""
        if self.step != FOREIGN:
            return False
        with pytest.raises(CheckpointError, match="another run"):
            save(self.directory, self.step, RUN, SMALL)
        for path in self.directory.glob("step-*.tmp-*"):
            shutil.rmtree(path)
        return True


def names_of(directory: Path) -> list[str]:
    """What may be in a directory after cleaning: committed ones, and those moved aside."""
    return [path.name for _, path in manifests.committed(directory)] + [path.name for path in directory.glob("step-*.damaged-*")]


def explore(examples: int, steps: int, **options: Any) -> None:
    """Runs the machine."""
    chosen = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck), **options)
    run_state_machine_as_test(CheckpointMachine, settings=chosen)


def test_no_order_of_events_loses_a_checkpoint() -> None:
    explore(25, 20)


@pytest.mark.slow
def test_no_long_order_of_events_loses_a_checkpoint() -> None:
    explore(400, 30)


def mutate(monkeypatch: pytest.MonkeyPatch, mutation: str) -> None:
    """Makes the program careless in one way."""
    if mutation == "damaged ones count in rotation":
        monkeypatch.setattr(Verified, "check", lambda _, checkpoint: manifests.read_manifest(checkpoint))
    elif mutation == "damaged ones are used":
        monkeypatch.setattr(manifests, "problems_of_files", lambda *_: [])
    elif mutation == "nothing is cleaned":
        monkeypatch.setattr(manifests, "clean", lambda _: None)


MUTATIONS = ["damaged ones count in rotation", "damaged ones are used", "nothing is cleaned"]


def example() -> None:
    """A few events in which each of the mutations matters."""
    machine = CheckpointMachine()
    try:
        machine.begin()
        machine.save(3, False)
        machine.save(3, False)
        machine.spoil(6, "model-00001.safetensors", "flip", 1000)
        machine.save(1, True)
        machine.killed(1, 5, False)
        machine.spoil(7, "state.json", "flip", 100)
        machine.restart()
        machine.what_was_committed_is_there()
    finally:
        machine.teardown()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_careless_program_is_found_out(monkeypatch: pytest.MonkeyPatch, mutation: str) -> None:
    """The machine can fail."""
    example()
    mutate(monkeypatch, mutation)
    with pytest.raises(AssertionError):
        example()


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_careless_program_is_found_out_by_chance(monkeypatch: pytest.MonkeyPatch, mutation: str) -> None:
    mutate(monkeypatch, mutation)
    with pytest.raises(AssertionError):
        explore(1500, 40, phases=[Phase.generate], database=None)
