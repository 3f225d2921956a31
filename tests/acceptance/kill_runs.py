"""Kills whole two-rank ZeRO-3 runs at random and starts them again: python -m tests.acceptance.kill_runs [KILLS] [SEED] [beside]

A run trains, evaluates, saves every second step and keeps three checkpoints; its 60 steps cross the end of an epoch many times. It is
killed with SIGKILL, both ranks or one, and started again with the same command until it is finished; then another one begins. A third of
the kills strike inside a save, at a named call and ordinal; the others at a random moment since the start. After every kill the newest
checkpoint must be no older than the last one that the run said it had saved, and its weights and moments bit for bit those of a run that
nobody killed. A finished run must have that run's losses.

With `beside`, runs save beside training (train.async_save), every kill strikes a thread that writes there, and the run that nobody killed
is one that saves in step.

The campaign fails itself unless kills landed in every phase.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from moss_train.train import manifest
from tests.forked import Ranks
from tests.launch import losses
from tests.small_runs import arguments, tensors_digest

OVERRIDES = ("train.eval_every=3", "data.holdout=0.1", "train.hang_seconds=60")
CALLS = ("write_piece", "sync", "rename", "remove")
SAVING = ("saving: write_piece", "saving: sync", "saving: rename", "saving: remove")
PHASES = ("starting", "training", *SAVING)


class Campaign:
    """A number of kills.

    Args:
        folder: For the runs. seed: Of everything random. steps: Of a run.
        beside: Save beside training, and strike there alone.
    """

    def __init__(self, folder: Path, seed: int, steps: int = 60, beside: bool = False):
        self.folder, self.random, self.steps, self.beside = folder, random.Random(seed), steps, beside
        self.phases: Counter[str] = Counter()
        self.lost = self.differences = self.finished = self.kills = 0
        reference = folder / "reference"
        assert self.start(reference, [], keep=99).wait() == [0, 0]
        self.digests = {step: tensors_digest(reference, step) for step, _ in manifest.committed(reference / "checkpoints")}
        self.losses = losses(reference)
        self.run_dir = folder / "run"

    def start(self, run_dir: Path, faults: list[dict[str, Any]], keep: int = 3) -> Ranks:
        """Starts a run, or goes on with it."""
        beside = self.beside and keep == 3
        line = [*arguments(run_dir, *OVERRIDES), f"train.keep={keep}", f"train.steps={self.steps}", f"train.async_save={beside}"]
        return Ranks(2, "tests/programs/faulty.py", *line, FAULTS=json.dumps(faults))

    def said_saved(self) -> int:
        """The newest step that the run said it had saved."""
        log = self.run_dir / "train.log"
        found = re.findall(r"INFO saved \S*step-(\d+) in", log.read_text(encoding="utf-8", errors="replace")) if log.exists() else []
        return max(map(int, found), default=0)

    def kill(self, in_save: bool) -> None:
        """One kill, and what it left."""
        faults = []
        call = ""
        if in_save:
            call = self.random.choice(CALLS)
            # A save takes some 5 writes and 15 syncs; removals begin with the fourth.
            ordinal = self.random.randint(1, {"write_piece": 24, "sync": 40, "rename": 5, "remove": 14}[call])
            rank = 0 if call in ("rename", "remove") else self.random.randint(0, 1)
            faults = [{"kind": "die_in_save", "call": call, "ordinal": ordinal, "rank": rank, "beside": self.beside}]
        steps_before = self.steps_said()
        ranks = self.start(self.run_dir, faults)
        until = time.monotonic() + (60 if in_save else self.random.uniform(0.2, 5.0))
        while time.monotonic() < until and not any(rank.ended for rank in ranks.ranks):
            time.sleep(0.01)
        struck = any(rank.ended for rank in ranks.ranks)
        # One rank is left to notice that the other is gone, now and then; killing both is quicker. (Before they have met, it takes a
        # launcher to end the other one.)
        if not in_save and self.random.random() < 0.1 and self.steps_said() > steps_before:
            ranks.ranks[self.random.randint(0, 1)].signal(9)
        else:
            ranks.kill()
        codes = ranks.wait(90)
        if codes == [0, 0]:
            self.finish()
            return
        assert -9 in codes, f"exit codes {codes}\n{ranks.output[-3000:]}"
        assert struck or not self.beside, "the run came neither to its end nor to the call"
        self.kills += 1
        partial = [path for path in (self.run_dir / "checkpoints").glob("*") if ".tmp-" in path.name or ".trash-" in path.name]
        if call:
            self.phases[f"saving: {call}"] += 1
        else:
            self.phases["saving: at random" if partial else "training" if self.steps_said() > steps_before else "starting"] += 1
        self.check()

    def steps_said(self) -> int:
        """How many step lines the run has printed, over all its starts."""
        log = self.run_dir / "train.log"
        return log.read_text(encoding="utf-8", errors="replace").count("INFO step ") if log.exists() else 0

    def check(self) -> None:
        """The newest checkpoint is there, and is what it should be."""
        said = self.said_saved()
        try:
            newest = manifest.newest_usable(self.run_dir / "checkpoints")
        except Exception as error:
            print(f"LOST: {error}", flush=True)
            self.lost += 1
            return
        step = newest[1].step if newest else 0
        if step < said or (newest and newest[2]):
            print(f"LOST: said saved {said}, newest good {step}, {newest[2] if newest else ''}", flush=True)
            self.lost += 1
        if newest and tensors_digest(self.run_dir, step) != self.digests[step]:
            print(f"DIFFERENT: step {step}", flush=True)
            self.differences += 1

    def finish(self) -> None:
        """A run that came to its end is the run that nobody killed."""
        self.check()
        if losses(self.run_dir) != self.losses:
            print("DIFFERENT: losses", flush=True)
            self.differences += 1
        self.finished += 1
        shutil.rmtree(self.run_dir)

    def run(self, kills: int) -> dict[str, Any]:
        """The summary of a campaign."""
        while self.kills < kills:
            self.kill(in_save=self.beside or self.random.random() < 0.45)
        while self.run_dir.exists():
            ranks = self.start(self.run_dir, [])
            codes = ranks.wait(120)
            assert codes == [0, 0], f"exit codes {codes}\n{ranks.output[-3000:]}"
            self.finish()
        return {
            "kills": self.kills,
            "phases": dict(sorted(self.phases.items())),
            "lost": self.lost,
            "differences": self.differences,
            "runs_finished": self.finished,
        }


def main() -> None:
    """Prints the summary; fails where something was lost, or where a phase was not struck."""
    beside = "beside" in sys.argv
    given = [value for value in sys.argv[1:] if value != "beside"]
    kills, seed = (int(value) for value in (given + ["50" if beside else "300", "7"][len(given) :]))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        summary = Campaign(Path(name), seed, beside=beside).run(kills)
    summary = {"seed": seed, "beside": beside, "seconds": round(time.monotonic() - started), **summary}
    print(json.dumps(summary), flush=True)
    assert not summary["lost"]
    assert not summary["differences"]
    missing = [phase for phase in (SAVING if beside else PHASES) if not summary["phases"].get(phase)]
    assert not missing, f"no kill landed in: {missing}"
    assert sum(count for phase, count in summary["phases"].items() if phase.startswith("saving")) >= kills // 3


if __name__ == "__main__":
    main()
