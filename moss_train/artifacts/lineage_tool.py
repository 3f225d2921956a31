"""`lineage show|verify|diff|children`: where artefacts come from, and whether they are what they were. Torch is not needed."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moss_train.artifacts import lineage_diff, lineage_html, lineage_mapping, lineage_svg, lineage_text
from moss_train.artifacts.lineage import Record, load, record_path
from moss_train.artifacts.lineage_graph import Graph, Node, descendants, family, name_of
from moss_train.artifacts.lineage_places import artefacts_below
from moss_train.artifacts.lineage_verify import Known, Report, short, verify
from moss_train.data.terminal import Screen, count, exit_code_of, visible
from moss_train.errors import CheckpointError, UsageError
from moss_train.files import replace_content

_DIFFERENCE_WIDTH = 34


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code: 4 where `verify` finds a problem, or there is no record."""
    parser = argparse.ArgumentParser(prog="lineage", description="Where artefacts come from, and whether they are what they were.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], summary: str, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=description)
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="JSON, for programs")
        return command

    show = add("show", _show, "the tree from an artefact to its base", "Shows what an artefact was made from, and what was made from it.")
    show.add_argument("artefact", type=Path, metavar="DIR", help="a directory with lineage.json, or a file with FILE.lineage.json")
    show.add_argument("--svg", type=Path, metavar="FILE", help="draw the family")
    show.add_argument("--html", type=Path, metavar="FILE", help="the picture and every record on one page")
    show.add_argument(
        "--as", dest="form", choices=("huggingface", "in-toto"), help="the record as others read it: a card's front matter, a statement"
    )
    check = add(
        "verify",
        _verify,
        "whether every file is what it was",
        "Reads every file of artefacts and of their ancestors: what is changed, missing, unlisted or not as declared (exit code 4).",
    )
    check.add_argument("artefacts", type=Path, nargs="+", metavar="DIR", help="artefacts, or directories that hold some")
    check.add_argument("--quick", action="store_true", help="sizes and records only")
    diff = add("diff", _diff, "what differs between two artefacts", "Compares two records: configuration, data, metrics, code, files.")
    diff.add_argument("left", type=Path, metavar="A")
    diff.add_argument("right", type=Path, metavar="B")
    children = add("children", _children, "what was made from an artefact", "Lists the artefacts below ROOT... that descend from DIR.")
    children.add_argument("artefact", type=Path, metavar="DIR")
    children.add_argument("roots", type=Path, nargs="*", metavar="ROOT", help="where to look; by default the folder above that of DIR")
    for command in (show, check):
        command.add_argument("--in", dest="roots", type=Path, nargs="+", default=[], metavar="DIR", help="where to look for its family")
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: arguments.run(arguments))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _require(artefact: Path) -> Record:
    if not artefact.exists():
        raise CheckpointError(f"{artefact}: no such file or directory")
    record = load(artefact)
    if record is None:
        raise CheckpointError(f"{artefact} has no record: {record_path(artefact)} is not there; it was made elsewhere")
    return record


# ---------------------------------------------------------------------- show


def _show(arguments: argparse.Namespace) -> int:
    if arguments.form is not None:
        record = _require(arguments.artefact)
        _print_json(lineage_mapping.in_toto(record) if arguments.form == "in-toto" else lineage_mapping.huggingface(record.lineage))
        return 0
    graph = family(arguments.artefact, arguments.roots)
    for path, draw in ((arguments.svg, lineage_svg.draw), (arguments.html, lineage_html.page)):
        if path is not None:
            _write(path, draw(graph))
    if arguments.json:
        _print_json({"root": graph.root.id, "nodes": [_node_json(graph, node) for node in graph.nodes.values()]})
    else:
        lineage_text.print_tree(Screen(highlight=False), graph)
        for path in filter(None, (arguments.svg, arguments.html)):
            print(f"wrote {path}")
    return 0


def _write(path: Path, text: str) -> None:
    try:
        replace_content(path, text.encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error


def _node_json(graph: Graph, node: Node) -> dict[str, Any]:
    lineage = node.lineage
    return {
        "id": node.id,
        "name": node.name,
        "path": str(node.path) if node.path is not None else None,
        "kind": node.kind,
        "stage": lineage.stage,
        "parents": [{"role": role, "id": parent} for role, parent in graph.parents.get(node.id, [])],
        "tokens_seen": lineage.tokens_seen,
        "flops": lineage.flops,
        "tokens_of_all_trainings": graph.total_tokens(node.id),
        "flops_of_all_trainings": graph.total_flops(node.id),
        "metrics": lineage.metrics,
        "details": lineage.details,
        "licences": lineage.licences,
        "descends_from_root": node.id in graph.made_from_it,
        "problem": node.problem,
    }


# ---------------------------------------------------------------------- verify


def _verify(arguments: argparse.Namespace) -> int:
    failed, told, known, shown = False, [], Known(), set[Path]()
    for artefact in [found for given in arguments.artefacts for found in _artefacts(given)]:
        started = time.monotonic()
        report = verify(artefact, arguments.roots, reads=not arguments.quick, known=known)
        failed |= bool(report.problems)
        if arguments.json:
            told.append(_report_json(artefact, report))
        else:
            _print_report(artefact, report, time.monotonic() - started, arguments.quick, shown)
    if arguments.json:
        _print_json(told)
    return CheckpointError.exit_code if failed else 0


def _artefacts(given: Path) -> list[Path]:
    """The artefact itself, or those below a directory that is none."""
    if not given.exists():
        raise CheckpointError(f"{given}: no such file or directory")
    found = [given] if record_path(given).is_file() else list(artefacts_below(given)) if given.is_dir() else []
    if not found:
        raise CheckpointError(f"{given} has no record, and nothing below it has: there is nothing to verify")
    return found


def _print_report(artefact: Path, report: Report, seconds: float, quick: bool, shown: set[Path]) -> None:
    """Prints what was found. Of several artefacts of one family, an ancestor that is good is `shown` once."""
    console = Screen(highlight=False, soft_wrap=True)
    by_place: dict[Path, list[str]] = {}
    for problem in report.problems:
        by_place.setdefault(problem.artefact, []).append(f"{problem.kind}: {problem.message}")
    for place, record in report.checked:
        wrong = by_place.pop(place, [])
        if place.resolve() in shown and not wrong:
            continue
        shown.add(place.resolve())
        what = "with a damaged record" if wrong else "made elsewhere, known by its files"
        if record is not None:
            size = lineage_text.measure(record.total_bytes, "B")
            what = f"{record.lineage.kind}, {count(len(record.files), 'file')}, {size}, {short(record.id)}"
        state = f"[red]{len(wrong)} wrong[/red]" if wrong else "good"
        console.print(f"[bold]{_escaped(name_of(place))}[/bold]  {what}: {state}")
        for line in wrong:
            console.print(f"  {visible(line)}", markup=False)
    for lines in by_place.values():
        for line in lines:
            console.print(visible(line), markup=False)
    for parent, child in report.absent:
        where = f"not at hand: {parent.name} ({parent.role} of {name_of(child)}), {short(parent.id)}"
        console.print(visible(where), markup=False, style="dim")
    depth = "sizes and records" if quick else "every byte"
    wrong_count = f"{len(report.problems)} wrong" if report.problems else "all good"
    console.print(f"{artefact}: {depth} of {count(len(report.checked), 'artefact')}, {wrong_count} ({seconds:.1f} s)", markup=False)


def _escaped(text: str) -> str:
    return visible(text).replace("[", r"\[")


def _report_json(artefact: Path, report: Report) -> dict[str, Any]:
    return {
        "artefact": str(artefact),
        "good": not report.problems,
        "checked": [{"path": str(path), "id": record.id if record is not None else None} for path, record in report.checked],
        "absent": [{"id": parent.id, "role": parent.role, "name": parent.name, "child": str(child)} for parent, child in report.absent],
        "problems": [{"path": str(one.artefact), "file": one.file, "kind": one.kind, "message": one.message} for one in report.problems],
    }


# ---------------------------------------------------------------------- diff and children


def _diff(arguments: argparse.Namespace) -> int:
    left, right = _require(arguments.left), _require(arguments.right)
    found = lineage_diff.differences(left, right)
    if arguments.json:
        _print_json({"left": left.id, "right": right.id, "differences": lineage_diff.as_json(found)})
        return 0
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_edge=False)
    for heading, style in (("", "cyan"), (name_of(arguments.left), None), (name_of(arguments.right), None)):
        table.add_column(visible(heading), style=style, overflow="fold", max_width=_DIFFERENCE_WIDTH)
    section = ""
    for one in found:
        if one.section != section:
            section = one.section
            table.add_row(f"[bold]{section}[/bold]")
        table.add_row(*(_escaped(text) for text in (f" {one.key}", one.spell(one.left), one.spell(one.right))))
    console = Screen(highlight=False)
    console.print(table if found else "the records say the same, but for their ids and times")
    return 0


def _children(arguments: argparse.Namespace) -> int:
    _require(arguments.artefact)
    found = descendants(arguments.artefact, arguments.roots)
    if arguments.json:
        _print_json([{"id": node.id, "kind": node.kind, "stage": node.lineage.stage, "path": str(node.path)} for node in found])
        return 0
    console = Screen(highlight=False, soft_wrap=True)
    for node in found:
        console.print(f"{visible(str(node.path))}  {lineage_text.title(node)}  {short(node.id)}", markup=False)
    if not found:
        console.print("nothing was made from it, as far as the records there say", markup=False)
    return 0
