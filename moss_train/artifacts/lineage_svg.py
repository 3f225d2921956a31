"""A family as a picture: a card an artefact, with what it is, what went in and what came out; lines lead from parents down to children."""

from __future__ import annotations

from html import escape

from moss_train.artifacts.lineage_graph import Graph, Node
from moss_train.artifacts.lineage_layout import MARGIN, Box, Layout, Line, arrange
from moss_train.artifacts.lineage_text import amount, data_lines, facts, identity, measure, names_own_data, title

FONT = "'DejaVu Sans', 'Helvetica Neue', Helvetica, Arial, 'Noto Sans', 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif"
_MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
_COLOURS = {
    "tokenizer": "#7c5cbf", "data": "#3f8f5b", "rendered": "#3f8f5b", "shards": "#3f8f5b", "model": "#2a6f97", "checkpoint": "#b7791f",
    "export": "#2a6f97", "variant": "#a23e72", "pm": "#c8553d", "evaluation": "#5b6770",
}  # fmt: skip
_OTHER = "#8d99ae"
_LEAST_WIDTH, _MOST_WIDTH = 220.0, 380.0
_PAD = 14.0
_KIND, _NAME, _FACT = 11.0, 14.0, 11.5
_HEAD = 62.0
_STRAIGHT = 26.0

# Of DejaVu Sans, the widest of the fonts named above, in hundredths of the size; what is not listed is as wide as a capital or a Chinese
# character.
_WIDTHS = {
    character: width
    for width, characters in {
        28: "'ijl", 30: "IJ ,.", 34: "/:;\\|", 36: "f-", 40: "()[]t!·", 42: "r", 46: '"', 50: "*_`", 53: "sz?", 56: "cL", 59: "Fkvxy",
        61: "PTYao", 63: "eESbdghnpqu", 64: "$0123456789{}", 68: "KAV", 70: "BRXZC", 75: "UHN", 79: "DG&OQ", 84: "w#+<=>^~", 87: "M",
        100: "%mW@",
    }.items()
    for character in characters
}  # fmt: skip

_STYLE = """
svg.lineage { --page: #ffffff; --card: #fbfcfd; --line: #cfd6de; --edge: #7b8794; --text: #1d2733; --dim: #5b6770 }
@media (prefers-color-scheme: dark) {
 svg.lineage { --page: #14181d; --card: #1d232a; --line: #3a4450; --edge: #8794a1; --text: #e8edf2; --dim: #a3afba }
 svg.lineage .kind { filter: brightness(1.5) }
}
svg.lineage .page { fill: var(--page) } svg.lineage .card { fill: var(--card); stroke: var(--line) }
svg.lineage .edge, svg.lineage .rule { stroke: var(--edge) } svg.lineage .tip { fill: var(--edge) }
svg.lineage .role { fill: var(--dim); stroke: var(--page) }
svg.lineage .name { fill: var(--text) } svg.lineage .fact { fill: var(--text) } svg.lineage .dim { fill: var(--dim) }
"""


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width of a text, in the units of the picture; rather more than less."""
    hundredths = sum(_WIDTHS.get(character, 78 if ord(character) < 0x2E80 else 102) for character in text)
    return (1.05 * (hundredths + 7 * len(text)) if bold else 1.01 * hundredths) / 100 * size


def fitted(text: str, size: float, room: float, bold: bool = False) -> str:
    """The text, cut in the middle where it has no room: names differ at both ends."""
    if text_width(text, size, bold) <= room:
        return text
    for kept in range(len(text) - 1, 1, -1):
        head = (kept + 1) // 2
        cut = f"{text[:head].rstrip()}…{text[len(text) - (kept - head) :].lstrip()}" if kept > head else f"{text[:head]}…"
        if text_width(cut, size, bold) <= room:
            return cut
    return "…"


class _Card:
    """What stands on a card, and how large it is."""

    def __init__(self, graph: Graph, node: Node):
        self.node = node
        self.facts = facts(node)
        self.data = data_lines(node) if names_own_data(graph, node) else []
        self.identity = identity(node).removeprefix("files-").removeprefix("sha256:")[:10]
        kind = text_width(title(node).upper(), _KIND, bold=True) * 1.08 + 0.62 * _KIND * len(self.identity) + 16
        widths = [kind, text_width(node.name, _NAME, bold=True)]
        widths += [text_width(line, _FACT) for line in self.facts] + [14 + text_width(line, _FACT) for line in self.data]
        self.width = min(_MOST_WIDTH, max(_LEAST_WIDTH, max(widths) + 2 * _PAD + 6))
        self.height = 54.0 + 17 * len(self.facts) + (10 + 17 * len(self.data) if self.data else 0) + 4

    def draw(self, box: Box, is_root: bool) -> list[str]:
        """Its elements, at its place."""
        node, x, right = self.node, box.x + _PAD + 4, box.x + box.width - _PAD
        room = right - x
        colour = _COLOURS.get(node.kind, _OTHER)
        dashes = "" if node.path is not None else ' stroke-dasharray="5 4"'
        border = f' stroke="{colour}" style="stroke:{colour}" stroke-width="2"' if is_root else ' stroke="#cfd6de" stroke-width="1"'
        parts = [
            f"<g><title>{escape(f'{node.kind} {node.name} {node.id}')}</title>",
            f'<rect class="card" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="8" '
            f'fill="#fbfcfd"{border}{dashes}/>',
            f'<rect x="{box.x:.1f}" y="{box.y + 8:.1f}" width="4" height="{box.height - 16:.1f}" rx="2" fill="{colour}"/>',
        ]
        y = box.y + 22
        kind = fitted(title(node).upper(), _KIND * 1.08, room - 0.62 * _KIND * len(self.identity) - 12, bold=True)
        parts.append(_text(kind, x, y, _KIND, "kind", colour, weight=600, spacing=0.5))
        if self.identity:
            parts.append(
                f'<text class="dim" x="{right:.1f}" y="{y:.1f}" font-family="{_MONO}" font-size="{_KIND - 1}" text-anchor="end" '
                f'fill="#5b6770">{escape(self.identity)}</text>'
            )
        y += 20
        parts.append(_text(fitted(node.name, _NAME, room, bold=True), x, y, _NAME, "name", "#1d2733", weight=600))
        for line in self.facts:
            y += 17
            parts.append(_text(fitted(line, _FACT, room), x, y, _FACT, "fact", "#1d2733"))
        if self.data:
            y += 10
            parts.append(
                f'<path class="rule" d="M {x:.1f} {y:.1f} H {right:.1f}" stroke="#7b8794" stroke-opacity="0.35" stroke-width="1"/>'
            )
            y += 1
            for line in self.data:
                y += 17
                parts.append(f'<circle cx="{x + 3:.1f}" cy="{y - 4:.1f}" r="2.6" fill="#3f8f5b"/>')
                parts.append(_text(fitted(line, _FACT, room - 14), x + 14, y, _FACT, "dim", "#5b6770"))
        return [*parts, "</g>"]


def _text(text: str, x: float, y: float, size: float, kind: str, fill: str, weight: int = 400, spacing: float = 0.0) -> str:
    more = (f' font-weight="{weight}"' if weight != 400 else "") + (f' letter-spacing="{spacing}"' if spacing else "")
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}"{more}>{escape(text)}</text>'


def picture(graph: Graph) -> tuple[Layout, dict[str, _Card]]:
    """The cards of a family, and where they stand."""
    cards = {name: _Card(graph, node) for name, node in graph.nodes.items()}
    edges = [(parent, child, role) for child in graph.nodes for role, parent in graph.edges(child) if parent in graph.nodes]
    return arrange({name: (card.width, card.height) for name, card in cards.items()}, edges, top=_HEAD + MARGIN / 2), cards


def draw(graph: Graph) -> str:
    """The picture as an SVG file, which follows the reader's choice of light or dark."""
    layout, cards = picture(graph)
    heading = f"Lineage of {graph.root.name}"
    runs = list(graph.runs(graph.root.id))
    summary = (
        f"{len(graph.nodes)} artefacts · {len(runs)} {'training' if len(runs) == 1 else 'trainings'} · "
        f"{amount(graph.total_tokens(graph.root.id))} tokens · {measure(graph.total_flops(graph.root.id), 'FLOPs')}"
    )
    width = max(layout.width, text_width(heading, 18, bold=True) + 2 * MARGIN, text_width(summary, 12) + 2 * MARGIN)
    shift = (width - layout.width) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="lineage" viewBox="0 0 {width:.0f} {layout.height:.0f}" width="{width:.0f}" '
        f'height="{layout.height:.0f}" font-family="{FONT}" role="img" aria-label="{escape(heading)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{width:.0f}" height="{layout.height:.0f}" rx="10" fill="#ffffff"/>',
        _text(heading, MARGIN, 34, 18, "name", "#1d2733", weight=600),
        _text(summary, MARGIN, 54, 12, "dim", "#5b6770"),
        f'<g transform="translate({shift:.1f} 0)">',
        *(_edge(line) for line in layout.lines),
        *(_role(line) for line in layout.lines),
    ]
    for name, card in cards.items():
        parts += card.draw(layout.boxes[name], name == graph.root.id)
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _edge(line: Line) -> str:
    points = line.points
    path = f"M {points[0][0]:.1f} {points[0][1]:.1f} V {points[1][1]:.1f}"
    # From the lower edge of one layer to the upper edge of the next, then straight down through it.
    for number in range(1, len(points) - 1, 2):
        (x, y), (next_x, next_y) = points[number], points[number + 1]
        is_last = number + 2 == len(points)
        # The last piece is straight: the role stands beside it.
        next_y -= _STRAIGHT if is_last else 0.0
        bend = (next_y - y) / 2
        path += f" C {x:.1f} {y + bend:.1f} {next_x:.1f} {next_y - bend:.1f} {next_x:.1f} {next_y:.1f}"
        path += f" V {points[-1][1] - 4 if is_last else points[number + 2][1]:.1f}"
    x, y = points[-1]
    tip = f"M {x - 4:.1f} {y - 8:.1f} L {x + 4:.1f} {y - 8:.1f} L {x:.1f} {y - 0.5:.1f} Z"
    return f'<path class="edge" d="{path}" fill="none" stroke="#7b8794" stroke-width="1.4"/><path class="tip" d="{tip}" fill="#7b8794"/>'


def _role(line: Line) -> str:
    x, y = line.points[-1]
    # The outline in the colour of the page keeps a line behind it from crossing the letters.
    return (
        f'<text class="role" x="{x + 7:.1f}" y="{y - 10:.1f}" font-size="11" fill="#5b6770" stroke="#ffffff" stroke-width="3" '
        f'paint-order="stroke">{escape(line.role)}</text>'
    )
