"""A family as text: short facts about each artefact, and the tree of the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from moss_train.artifacts.lineage import FOREIGN, UNKNOWN_LICENCE
from moss_train.artifacts.lineage_graph import Graph, Node
from moss_train.artifacts.lineage_verify import short
from moss_train.data.terminal import visible

_MOST_METRICS = 3
_MOST_DATA = 4
_METRIC_ORDER = ("loss", "accuracy", "perplexity", "ece")
_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount(value: float) -> str:
    """A number for people: whole up to 9,999, then three digits and a prefix: `12.3 M`."""
    if value < 9_999.5:
        return f"{value:,.0f}"
    for size, prefix in _PREFIXES:
        # Rounding must not make 1000 k.
        if value >= size * 0.9995:
            digits = value / size
            return f"{digits:.3g} {prefix}" if digits < 999.5 else f"{digits:,.0f} {prefix}"
    raise AssertionError(value)


def measure(value: float, unit: str) -> str:
    """A number with its unit: `12.3 GFLOPs`, `322 B`."""
    number = amount(value)
    return f"{number} {unit}" if number[-1].isdigit() else f"{number}{unit}"


def title(node: Node) -> str:
    """What it is: kind, and the stage that made it."""
    stage = node.lineage.stage
    return f"{node.kind} · {stage}" if stage and stage != node.kind else node.kind


def main_metrics(node: Node) -> list[tuple[str, float]]:
    """The few metrics that say most: losses first, of validation before training."""

    def rank(item: tuple[str, float]) -> tuple[int, int, str]:
        last = item[0].rsplit("/", 1)[-1]
        return item[0].startswith("train/"), _METRIC_ORDER.index(last) if last in _METRIC_ORDER else len(_METRIC_ORDER), item[0]

    return sorted(node.lineage.metrics.items(), key=rank)[:_MOST_METRICS]


def facts(node: Node) -> list[str]:
    """What was put in and what came out, a line each."""
    lineage, lines = node.lineage, [f"licence {node.licence}"] if node.licence is not None else []
    parts = []
    if lineage.tokens_seen:
        supervised = f" ({amount(lineage.supervised_tokens)} with loss)" if lineage.supervised_tokens else ""
        parts.append(f"{amount(lineage.tokens_seen)} tokens{supervised}")
    if lineage.flops:
        parts.append(measure(lineage.flops, "FLOPs"))
    if parts:
        lines.append(" · ".join(parts))
    details = lineage.details
    form = []
    if isinstance(details.get("parameters"), int):
        form.append(f"{amount(details['parameters'])} parameters")
    if isinstance(details.get("bits"), int):
        form.append(f"{details['bits']} bits {details.get('scheme') or ''}".strip())
    elif lineage.number_format:
        form.append(lineage.number_format)
    if isinstance(details.get("group_size"), int):
        form.append(f"groups of {details['group_size']}")
    if lineage.kind == "tokenizer" and isinstance(details.get("size"), int):
        form.append(f"{details['size']:,} tokens")
    if lineage.kind == "data" and isinstance(details.get("records"), int):
        form.append(f"{details['records']:,} records")
    counts = details.get("counts")
    if isinstance(counts, dict) and isinstance(counts.get("tokens"), int):
        form.append(f"{amount(counts['tokens'])} tokens rendered")
    if isinstance(details.get("loss_on"), str):
        form.append(f"loss on {details['loss_on']}")
    if form:
        lines.append(" · ".join(form))
    if metrics := main_metrics(node):
        lines.append(" · ".join(f"{name} {value:.4g}" for name, value in metrics))
    return lines


def data_lines(node: Node) -> list[str]:
    """The data sets that it names itself."""
    sources = node.lineage.data
    lines = [f"{source.name} · {source.records:,} records · {source.licence or UNKNOWN_LICENCE}" for source in sources]
    return [*lines[: _MOST_DATA - 1], f"and {len(lines) - _MOST_DATA + 1} more data sets"] if len(lines) > _MOST_DATA else lines


def names_own_data(graph: Graph, node: Node) -> bool:
    """Whether its data are not those that a parent names already."""
    parents = [graph.nodes[parent] for _, parent in graph.edges(node.id) if parent in graph.nodes]
    inherited = {source.sha256 for parent in parents for source in parent.lineage.data}
    inherited |= {entry.sha256 for parent in parents if parent.record is not None for entry in parent.record.files.values()}
    return any(source.sha256 not in inherited for source in node.lineage.data)


def identity(node: Node) -> str:
    """The beginning of the id; for one that was not hashed, nothing."""
    return "" if node.id == f"{FOREIGN}?" else short(node.id)


def print_tree(console: Console, graph: Graph) -> None:
    """The tree from an artefact down to what it was made from, then what was made from it."""
    shown: set[str] = set()
    tree = Tree(_label(graph, graph.root, "", shown), guide_style="dim")
    _grow(tree, graph, graph.root.id, shown)
    console.print(tree)
    runs = list(graph.runs(graph.root.id))
    if len(runs) > 1:
        total = f"{amount(graph.total_tokens(graph.root.id))} tokens, {measure(graph.total_flops(graph.root.id), 'FLOPs')}"
        console.print(f"\nin all {len(runs)} trainings: {total}", markup=False, highlight=False)
    if licences := graph.root.lineage.licences:
        told = "; ".join(f"{licence}: {', '.join(names)}" for licence, names in licences.items())
        console.print(f"licences: {visible(told)}", markup=False, highlight=False)
    if graph.made_from_it:
        below = Tree("made from it", guide_style="dim")
        for name in graph.made_from_it:
            below.add(_label(graph, graph.nodes[name], "", set()))
        console.print()
        console.print(below)


def _grow(tree: Tree, graph: Graph, child: str, shown: set[str]) -> None:
    shown.add(child)
    for role, parent in graph.edges(child):
        branch = tree.add(_label(graph, graph.nodes[parent], role, shown))
        if parent not in shown:
            _grow(branch, graph, parent, shown)


def _label(graph: Graph, node: Node, role: str, shown: set[str]) -> Text:
    text = Text(overflow="fold")
    if role:
        text.append(f"{role}: ", style="dim")
    text.append(visible(node.name), style="bold")
    text.append(f"  {title(node)}", style="cyan" if node.record is not None else "yellow")
    text.append(f"  {identity(node)}", style="dim")
    if node.id in shown:
        return text.append("  (above)", style="dim")
    lines = facts(node) + (data_lines(node) if names_own_data(graph, node) else [])
    if node.problem is not None:
        lines.append("its record is damaged; lineage verify says more")
    for line in lines:
        text.append(f"\n{visible(line)}")
    return text
