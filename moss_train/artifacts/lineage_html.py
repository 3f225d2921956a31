"""A family on one page: the picture, then every record. No scripts, and nothing is loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from moss_train.artifacts.lineage import UNKNOWN_LICENCE
from moss_train.artifacts.lineage_graph import Graph, Node
from moss_train.artifacts.lineage_svg import draw
from moss_train.artifacts.lineage_text import measure, title

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f8fa; --line: #d5dce3; --text: #1d2733; --dim: #5b6770 }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --card: #1d232a; --line: #3a4450; --text: #e8edf2; --dim: #a3afba } }
body { margin: 0 auto; padding: 24px; max-width: 1100px; background: var(--page); color: var(--text);
 font: 15px/1.5 "Helvetica Neue", Helvetica, Arial, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", sans-serif }
figure { margin: 0 0 32px; overflow-x: auto } figure svg { max-width: 100%; height: auto }
section { border: 1px solid var(--line); border-radius: 8px; padding: 4px 20px 16px; margin: 0 0 20px; background: var(--card) }
h1 { font-size: 22px } h2 { font-size: 17px; margin: 14px 0 4px } h3 { font-size: 14px; margin: 16px 0 4px }
.dim { color: var(--dim) } code, pre { font: 12.5px/1.45 ui-monospace, Menlo, Consolas, monospace } code { overflow-wrap: anywhere }
pre { overflow-x: auto; padding: 10px; border: 1px solid var(--line); border-radius: 6px; background: var(--page) }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: 3px 14px 3px 0; vertical-align: top }
th { font-weight: 600; color: var(--dim) } tr + tr td { border-top: 1px solid var(--line) } td.number { font-variant-numeric: tabular-nums }
summary { cursor: pointer; margin-top: 10px; font-weight: 600 } a { color: inherit }
"""


def page(graph: Graph) -> str:
    """The page as HTML."""
    heading = escape(f"Lineage of {graph.root.name}")
    order = [graph.root.id, *(name for name in graph.nodes if name != graph.root.id)]
    sections = "\n".join(_section(graph, graph.nodes[name]) for name in order)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{heading}</h1>\n"
        f"<figure>\n{draw(graph)}</figure>\n{sections}\n</body>\n</html>\n"
    )


def _section(graph: Graph, node: Node) -> str:
    lineage, parts = node.lineage, []
    place = escape(str(node.path)) if node.path is not None else "not at hand"
    parts.append(f'<section id="{_anchor(node.id)}">\n<h2>{escape(node.name)}</h2>\n<div class="dim">{escape(title(node))} · {place}</div>')
    parts.append(f"<div><code>{escape(node.id)}</code></div>")
    if node.problem is not None:
        parts.append(f"<p>{escape(node.problem)}</p>")
    if rows := [(role, _link(graph, parent)) for role, parent in graph.parents.get(node.id, [])]:
        parts.append(_table("Made from", ("role", "artefact"), [(escape(role), link) for role, link in rows]))
    if lineage.data:
        data = [
            (
                escape(source.name),
                escape(source.role),
                f"{source.records:,}",
                escape(source.licence or UNKNOWN_LICENCE),
                f"<code>{source.sha256[:16]}</code>",
            )
            for source in lineage.data
        ]
        parts.append(_table("Data", ("name", "role", "records", "licence", "sha256"), data))
    counts = []
    if lineage.tokens_seen:
        counts += [("tokens", f"{lineage.tokens_seen:,}"), ("tokens with loss", f"{lineage.supervised_tokens:,}")]
    if lineage.flops:
        counts.append((f"FLOPs ({escape(lineage.flops_formula)})", measure(lineage.flops, "FLOPs")))
    if total := graph.total_flops(node.id):
        counts.append(("FLOPs of all trainings behind it", measure(total, "FLOPs")))
    counts += [(escape(name), f"{value:.6g}") for name, value in lineage.metrics.items()]
    if counts:
        parts.append(_table("Figures", ("", ""), counts))
    if lineage.licences:
        parts.append(
            _table("Licences", ("licence", "of"), [(escape(key), escape(", ".join(names))) for key, names in lineage.licences.items()])
        )
    if node.record is not None:
        parts.append(_folded("Configuration", lineage.config))
        parts.append(_folded("Details", lineage.details))
        parts.append(_folded("Code and environment", {**node.record.code, **node.record.environment, "created": node.record.created}))
        files = [(escape(name), measure(entry.bytes, "B"), f"<code>{entry.sha256}</code>") for name, entry in node.record.files.items()]
        parts.append(f"<details><summary>Files ({len(files)})</summary>{_table('', ('name', 'size', 'sha256'), files)}</details>")
    return "\n".join([*filter(None, parts), "</section>"])


def _anchor(identity: str) -> str:
    return escape(identity.replace(":", "-"))


def _link(graph: Graph, identity: str) -> str:
    name = graph.nodes[identity].name if identity in graph.nodes else identity
    return f'<a href="#{_anchor(identity)}">{escape(name)}</a>'


def _table(heading: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of cells that are escaped already."""
    head = "".join(f"<th>{column}</th>" for column in columns) if any(columns) else ""
    body = "\n".join("<tr>" + "".join(f'<td class="number">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    title_row = f"<tr>{head}</tr>\n" if head else ""
    return (f"<h3>{heading}</h3>\n" if heading else "") + f"<table>\n{title_row}{body}\n</table>"


def _folded(heading: str, value: dict[str, Any]) -> str:
    if not value:
        return ""
    text = escape(json.dumps(value, indent=1, ensure_ascii=False))
    return f"<details><summary>{heading}</summary><pre>{text}</pre></details>"
