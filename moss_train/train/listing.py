"""`checkpoint list|verify`: which checkpoints a run has, and whether they are good. Needs neither torch nor DeepSpeed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from moss_train.errors import CheckpointError, MossTrainError
from moss_train.train import manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code: 4 where `verify` finds damage, or there is nothing to look at."""
    parser = argparse.ArgumentParser(prog="checkpoint", description="Look at the training checkpoints of a run.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, explanation in (
        ("list", "the checkpoints of a run, newest first, by their manifests alone"),
        ("verify", "reads every byte: what a resumed run does before it goes on"),
    ):
        command = commands.add_parser(name, help=explanation, description=explanation)
        command.add_argument("directory", type=Path, help="a run directory, its checkpoints directory, or one checkpoint")
        command.add_argument("--json", action="store_true", help="one JSON object a checkpoint")
    arguments = parser.parse_args(argv)
    try:
        return show(arguments.directory, arguments.command == "verify", arguments.json)
    except MossTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def show(directory: Path, reads: bool, as_json: bool) -> int:
    """Prints the checkpoints found in a directory."""
    found = [(0, directory)] if (directory / manifest.FILE_NAME).is_file() else manifest.committed(directory / "checkpoints")
    found = found or manifest.committed(directory)
    if not found:
        raise CheckpointError(f"there is no checkpoint in {directory}: expected step-... directories there, or in checkpoints/ below it")
    lines = [describe(path.resolve(), reads) for _, path in found]
    for line in lines:
        if as_json:
            print(json.dumps(line))
        elif line["problem"]:
            print(f"{line['name']}  DAMAGED: {line['problem']}")
        else:
            print(
                f"{line['name']}  {line['bytes'] / 1e9:9.3f} GB  {line['files']} files  {line['samples']:,} samples  "
                f"saved {line['saved']}  run {line['run_id'][:8]}" + ("  good" if reads else "")
            )
    damaged = [line for line in lines if line["problem"]]
    return CheckpointError.exit_code if damaged and (reads or len(damaged) == len(lines)) else 0


def describe(path: Path, reads: bool) -> dict[str, Any]:
    """One checkpoint: what its manifest says, and what is wrong with it."""
    line: dict[str, Any] = {"name": path.name, "path": str(path), "problem": None}
    try:
        found = manifest.verify(path) if reads else manifest.read_manifest(path)
    except manifest.DamagedError as error:
        return {**line, "problem": str(error)}
    saved = datetime.fromtimestamp((path / manifest.FILE_NAME).stat().st_mtime).isoformat(sep=" ", timespec="seconds")
    counts = {"step": found.step, "samples": found.samples, "bytes": found.total_bytes, "files": len(found.files)}
    return {**line, **counts, "run_id": found.run_id, "saved": saved, "verified": reads}
