"""`evaluate compare DIR DIR ...`: evaluations, or models with what was measured of them in training, side by side. Torch is not needed.

Figures are compared where they were measured on the same data, by the hashes in the records; others are refused. Of suites that keep their
figures by item, the difference to the first one has an interval over the items both have seen, drawn together; of the others it has none.
Figures that depend on how text is cut into tokens are left out where tokenizers differ.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moss_train.artifacts.lineage import Lineage, Record, hash_value, load
from moss_train.artifacts.lineage_graph import name_of
from moss_train.artifacts.lineage_places import Places
from moss_train.data.terminal import Screen, exit_code_of, visible
from moss_train.errors import CheckpointError, DataError, UsageError
from moss_train.evaluate.figures import Form, Measure, difference
from moss_train.files import replace_content

COMMANDS = ("compare",)
_MEASURED = ("evaluation", "held_out", "valid")
"""Roles of data that figures are measured on."""
_NOT_SETTINGS = ("suite", "task", "conditions", "levels", "scale", "tokenizer", "left_out")
"""Details of an evaluation that its figures do not follow from, or that are looked at apart."""


@dataclass
class Side:
    """One column.

    Attributes:
        path: As given. name, stage, bits, id: Of the model. suite: Of the evaluation, or `training` for a model's own record.
        data: What the figures were measured on: hash by role and name. values: Figures by name.
        reported: As report.json describes them. measures: With their parts by item. settings: What they follow from besides.
    """

    path: Path
    name: str
    stage: str
    bits: Any
    id: str
    suite: str
    data: list[tuple[str, str, str]]
    values: dict[str, float]
    reported: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def data_hash(self) -> str:
        """Stands for the data, whatever the files are called."""
        return hash_value(sorted((role, digest) for role, _, digest in self.data))

    def interval(self, name: str) -> list[float] | None:
        """Of a figure, where one is known."""
        interval = (self.reported.get(name) or {}).get("interval")
        return interval if isinstance(interval, list) and None not in interval else None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the subcommand; returns the exit code: 3 where figures were measured on different data."""
    parser = argparse.ArgumentParser(prog="evaluate", description="What was measured of models, side by side.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compare = commands.add_parser("compare", help="figures side by side", description="Figures side by side, on the same data.")
    compare.add_argument("artefacts", type=Path, nargs="+", metavar="DIR", help="evaluations of one suite, or models")
    compare.add_argument("--out", type=Path, metavar="FILE", help="write the comparison here, as JSON")
    compare.add_argument("--json", action="store_true", help="JSON instead of the table")
    compare.add_argument("--match", default="", metavar="TEXT", help="only figures whose name holds this")
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: _compare(arguments))


def _compare(arguments: argparse.Namespace) -> int:
    if len(arguments.artefacts) < 2:
        raise UsageError("compare takes two directories or more: evaluations of one suite, or models")
    if arguments.out is not None and arguments.out.exists():
        raise UsageError(f"--out {arguments.out} exists; name another file")
    sides = [read_side(path) for path in arguments.artefacts]
    require_same_data(sides)
    found = compare_sides(sides, arguments.match)
    if not found["figures"]:
        told = "; ".join(found["notes"]) or "nothing is compared"
        raise DataError(f"no figure is shared by {', '.join(str(side.path) for side in sides)}; {told}")
    text = json.dumps(found, ensure_ascii=False, indent=1) + "\n"
    if arguments.out is not None:
        replace_content(arguments.out, text.encode())
    if arguments.json:
        print(text, end="")
    else:
        _print(found)
    return 0


def read_side(path: Path) -> Side:
    """An artefact as a column.

    Raises:
        CheckpointError: It has no record, or one that cannot be read.
        DataError: Nothing was measured of it.
    """
    record = load(path)
    if record is None:
        raise CheckpointError(f"{path}: has no record (lineage.json); expected an evaluation that scripts/evaluate.py wrote, or an export")
    made = record.lineage
    if made.kind != "evaluation":
        found = _of_training(path, record)
    else:
        report = _read_report(path / "report.json")
        parent = next((one for one in made.parents if one.role == "model"), None)
        suite = str(made.details.get("suite") or made.details.get("task") or "?")
        model = report.get("model") if isinstance(report.get("model"), dict) else {}
        # Older reports name the model alone; its record may be at hand.
        described = {**(_describe_parent(path, parent) if parent else {}), **(model or {})}
        found = Side(
            path,
            str(described.get("name") or (parent.name if parent else path.name)),
            str(described.get("stage") or "-"),
            described.get("bits") or described.get("number_format") or "-",
            parent.id if parent else "-",
            suite,
            _data_of(made),
            dict(made.metrics),
            dict(report.get("figures") or {}) or _known_intervals(suite, report),
            _measures(path, report.get("figures") or {}),
            {name: value for name, value in made.details.items() if name not in _NOT_SETTINGS},
        )
        found.settings["tokenizer"] = made.details.get("tokenizer")
    if not found.values:
        raise DataError(f"{path}: its record has no figure; nothing was measured of it")
    return found


def _of_training(path: Path, record: Record) -> Side:
    """A model with the figures of its training."""
    made = record.lineage
    details = made.details
    data = _data_of(made)
    if not data:
        # Without validation data of its own, part of the training data was kept apart.
        data = [(one.role, one.name, one.sha256) for one in made.data] + [("rows", "rows", str(details.get("rows_fingerprint")))]
    bits = details.get("bits") or made.number_format or "-"
    settings = {"tokenizer": details.get("tokenizer_fingerprint"), "loss_on": details.get("loss_on"), "seq_len": details.get("seq_len")}
    return Side(path, name_of(path), made.stage, bits, record.id, "training", data, dict(made.metrics), settings=settings)


def _data_of(made: Lineage) -> list[tuple[str, str, str]]:
    return [(one.role, one.name, one.sha256) for one in made.data if one.role in _MEASURED]


def _describe_parent(path: Path, parent: Any) -> dict[str, Any]:
    """What the record of an evaluated model says, where it is found."""
    place = Places().find(parent, path).path
    record = load(place) if place is not None else None
    if place is None or record is None:
        return {}
    found = {"name": name_of(place), "stage": record.lineage.stage}
    return found | {"number_format": record.lineage.number_format, "bits": record.lineage.details.get("bits")}


def _read_report(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected the report of an evaluation. Evaluate again") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: is a {type(found).__name__}, expected an object; evaluate again")
    return found


def _measures(path: Path, figures: dict[str, Any]) -> dict[str, Measure]:
    """The figures with their parts, where the evaluation keeps them."""
    measures = {name: Measure(Form(one["form"]), one["better"], bool(one["by_token"])) for name, one in figures.items()}
    if not measures or not (path / "items.jsonl").is_file():
        return {}
    for line in (path / "items.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        for name, (part, weight) in item["parts"].items():
            if name in measures:
                measures[name].add(item["item"], part, weight)
    return measures


def _known_intervals(suite: str, report: dict[str, Any]) -> dict[str, Any]:
    """Intervals of suites that write their figures in a form of their own."""
    if suite == "pm":
        return {"pm/accuracy": report.get("accuracy"), "pm/best_of_k": report.get("best_of_k")}
    if suite == "transfer":
        cells = report.get("cells") or []
        return {f"transfer/planted_{one['planted']}/asked_{one['asked']}/accuracy": one for one in cells}
    return {}


def require_same_data(sides: Sequence[Side]) -> None:
    """Refuses figures of different suites, or of different data.

    Raises:
        DataError: They are; with what each was measured on.
    """
    first = sides[0]
    for side in sides[1:]:
        if side.suite != first.suite:
            raise DataError(
                f"{side.path} is of suite {side.suite}, {first.path} of suite {first.suite}; compare evaluations of one suite, or models"
            )
        if side.data_hash != first.data_hash:
            lines = "\n".join(f"  {one.path}: {_named(one.data)}" for one in (first, side))
            raise DataError(
                f"{side.path} was measured on other data than {first.path}, so their figures say nothing about each other:\n{lines}\n"
                "Evaluate both on the same data"
            )


def _named(data: Sequence[tuple[str, str, str]]) -> str:
    return ", ".join(f"{name} (sha256 {digest[:12]}, {role})" for role, name, digest in data) or "nothing that its record names"


def compare_sides(sides: Sequence[Side], match: str = "") -> dict[str, Any]:
    """The shared figures, each with its interval and the difference to the first one, and what is to be said about them."""
    first = sides[0]
    notes = []
    same_tokens = len({side.settings.get("tokenizer") for side in sides}) == 1
    names = [name for name in first.values if match in name and all(name in side.values for side in sides)]
    by_token = [name for name in names if (first.reported.get(name) or {}).get("by_token") or first.suite == "training"]
    if by_token and not same_tokens:
        names = [name for name in names if name not in by_token]
        named = ", ".join(by_token[:4]) + (", ..." if len(by_token) > 4 else "")
        notes.append(f"the tokenizers differ: left out are figures per token ({named})")
    for key in sorted({key for side in sides for key in side.settings} - {"tokenizer"}):
        values = [side.settings.get(key) for side in sides]
        if any(value != values[0] for value in values):
            notes.append(f"{key} differs: {', '.join(str(value)[:40] for value in values)}")
    figures = {}
    for name in names:
        shown = []
        for side in sides:
            entry: dict[str, Any] = {"value": side.values[name], "interval": side.interval(name)}
            if side is not first:
                entry["difference"] = side.values[name] - first.values[name]
                entry["difference_interval"] = None
                if name in first.measures and name in side.measures:
                    found = difference(first.measures[name], side.measures[name])
                    entry["difference_interval"] = found["interval"] if found else None
            shown.append(entry)
        figures[name] = {"better": (first.reported.get(name) or {}).get("better"), "sides": shown}
    described = [
        {"path": str(one.path), "model": one.name, "id": one.id, "stage": one.stage, "bits": one.bits, "suite": one.suite} for one in sides
    ]
    on = {"data": [list(one) for one in first.data], "data_sha256": first.data_hash}
    return {"sides": described, **on, "figures": figures, "notes": notes}


def _print(found: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    screen = Screen(highlight=False)
    screen.width = max(screen.width, 92 + 64 * (len(found["sides"]) - 1))
    for number, side in enumerate(found["sides"], 1):
        weights = f"{side['bits']} bits" if isinstance(side["bits"], int) else side["bits"]
        screen.print(Text(visible(f"{number}: {side['model']}, stage {side['stage']}, {weights} ({side['path']})")))
    screen.print(Text(visible(f"suite {found['sides'][0]['suite']}, on {_named([tuple(one) for one in found['data']])}")))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("", no_wrap=True)
    for number in range(1, len(found["sides"]) + 1):
        for heading in (str(number), "95 %", *(("minus 1", "95 %") if number > 1 else ())):
            table.add_column(heading, justify="right", no_wrap=True)
    for name, figure in found["figures"].items():
        cells = []
        for entry in figure["sides"]:
            cells += [f"{entry['value']:.4g}", _interval(entry["interval"])]
            if "difference" in entry:
                cells += [f"{entry['difference']:+.4g}", _interval(entry["difference_interval"], "+.4g")]
        table.add_row(Text(visible(name)), *cells)
    screen.print(table)
    for note in found["notes"]:
        screen.print(Text(visible(note)))


def _interval(bounds: Sequence[float] | None, form: str = ".4g") -> str:
    return "-" if bounds is None else "..".join(format(bound, form) for bound in bounds)
