"""Where the cards of a family stand: in layers from bases down to what was made last, near their relatives, edges beside cards.

layers      the longest way from a base; an edge over several layers passes each through a gap of its own
order       by the mean place of relatives, a few times up and down
places      the nearest to the relatives' middle that leaves the cards apart
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GAP_X = 32.0
GAP_Y = 68.0
MARGIN = 28.0
_PASS_WIDTH = 16.0
_SWEEPS = 12
_PORT = 76.0
"""Between the ends of edges on a card: room for the name of a role."""
_INSET = 26.0


@dataclass
class Box:
    """A card, or the gap that an edge takes through a layer.

    Attributes:
        id: Of the node; of a gap, its edge and layer.
        width, height: Of what is drawn. layer: From 0 at the top. x, y: Of the upper left corner.
    """

    id: str
    width: float
    height: float
    layer: int = 0
    x: float = 0.0
    y: float = 0.0

    @property
    def middle(self) -> float:
        """Of its width."""
        return self.x + self.width / 2


@dataclass
class Line:
    """An edge as drawn: the points it goes through, from parent to child, and its role."""

    role: str
    points: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Layout:
    """Cards by id, lines, and the size of it all."""

    boxes: dict[str, Box]
    lines: list[Line]
    width: float
    height: float


def arrange(sizes: Mapping[str, tuple[float, float]], edges: Sequence[tuple[str, str, str]], top: float = MARGIN) -> Layout:
    """Arranges cards.

    Args:
        sizes: Id -> width and height.
        edges: (parent, child, role); no cycles.
        top: Room above the first layer.
    """
    boxes = {name: Box(name, *size) for name, size in sizes.items()}
    _choose_layers(boxes, edges)
    count = {name: max(sum(p == name for p, _, _ in edges), sum(c == name for _, c, _ in edges)) for name in boxes}
    for name, box in boxes.items():
        box.width = max(box.width, 2 * _INSET + _PORT * count[name])
    ways = [_way(boxes, number, parent, child) for number, (parent, child, _) in enumerate(edges)]
    everything = {**boxes, **{box.id: box for way in ways for box in way[1:-1]}}
    above: dict[str, list[str]] = {name: [] for name in everything}
    below: dict[str, list[str]] = {name: [] for name in everything}
    for way in ways:
        for one, other in pairwise(way):
            above[other.id].append(one.id)
            below[one.id].append(other.id)
    rows = _order(everything, above, below)
    _place(everything, rows, above, below)
    left = min(box.x for box in everything.values())
    for box in everything.values():
        box.x += MARGIN - left
    y = top
    for row in rows:
        height = max(everything[name].height for name in row)
        for name in row:
            everything[name].y = y
            if name not in boxes:
                everything[name].height = height
        y += height + GAP_Y
    bottoms = [max(box.y + box.height for box in everything.values() if box.layer == layer) for layer in range(len(rows))]
    lines = _lines(edges, ways, bottoms)
    width = max(box.x + box.width for box in everything.values()) + MARGIN
    return Layout(boxes, lines, width, y - GAP_Y + MARGIN)


def _choose_layers(boxes: dict[str, Box], edges: Sequence[tuple[str, str, str]]) -> None:
    for _ in boxes:
        for parent, child, _role in edges:
            boxes[child].layer = max(boxes[child].layer, boxes[parent].layer + 1)
    # What has no parents stands right above the first that was made of it.
    for name, box in boxes.items():
        children = [boxes[child].layer for parent, child, _ in edges if parent == name]
        if children and not any(child == name for _, child, _ in edges):
            box.layer = min(children) - 1
    lowest = min((box.layer for box in boxes.values()), default=0)
    for box in boxes.values():
        box.layer -= lowest


def _way(boxes: dict[str, Box], number: int, parent: str, child: str) -> list[Box]:
    first, last = boxes[parent], boxes[child]
    return [first, *(Box(f"{number} {layer}", _PASS_WIDTH, 0.0, layer) for layer in range(first.layer + 1, last.layer)), last]


def _order(everything: dict[str, Box], above: dict[str, list[str]], below: dict[str, list[str]]) -> list[list[str]]:
    count = 1 + max((box.layer for box in everything.values()), default=0)
    rows: list[list[str]] = [[name for name, box in everything.items() if box.layer == layer] for layer in range(count)]
    best, fewest = rows, _crossings(rows, below)
    for sweep in range(_SWEEPS):
        rows = [list(row) for row in rows]
        down = sweep % 2 == 0
        relatives = above if down else below
        for layer in range(1, count) if down else range(count - 2, -1, -1):
            beside = {name: place for place, name in enumerate(rows[layer - 1 if down else layer + 1])}
            own = {name: place for place, name in enumerate(rows[layer])}

            mean = {}
            for name in rows[layer]:
                places = [beside[other] for other in relatives[name] if other in beside]
                mean[name] = sum(places) / len(places) if places else float(own[name])
            rows[layer].sort(key=lambda name: (mean[name], own[name]))
        if (crossings := _crossings(rows, below)) < fewest:
            best, fewest = rows, crossings
    return best


def _crossings(rows: list[list[str]], below: dict[str, list[str]]) -> int:
    found = 0
    for upper, lower in pairwise(rows):
        place = {name: number for number, name in enumerate(lower)}
        ends = [(number, place[other]) for number, name in enumerate(upper) for other in below[name]]
        found += sum(a < c and b > d for a, b in ends for c, d in ends)
    return found


def _place(everything: dict[str, Box], rows: list[list[str]], above: dict[str, list[str]], below: dict[str, list[str]]) -> None:
    for row in rows:
        _settle([everything[name] for name in row], [0.0] * len(row))
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted = []
            for name in row:
                middles = [everything[other].middle for other in (*above[name], *below[name])]
                wanted.append(sum(middles) / len(middles) if middles else everything[name].middle)
            _settle([everything[name] for name in row], wanted)
    # What was made stands below what it was made from, so that a line of descent is a straight line.
    for row in rows:
        middles_of = [[everything[other].middle for other in above[name]] or [everything[name].middle] for name in row]
        _settle([everything[name] for name in row], [sum(middles) / len(middles) for middles in middles_of])


def _settle(row: list[Box], wanted: list[float]) -> None:
    """The places of middles nearest to the wanted ones, by squares, that keep order and gaps: isotonic regression."""
    offsets = [0.0]
    for one, other in pairwise(row):
        offsets.append(offsets[-1] + (one.width + other.width) / 2 + GAP_X)
    blocks: list[tuple[float, int]] = []
    for value in (want - offset for want, offset in zip(wanted, offsets, strict=True)):
        total, count = value, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            before, size = blocks.pop()
            total, count = total + before, count + size
        blocks.append((total, count))
    means = [total / count for total, count in blocks for _ in range(count)]
    for box, mean, offset in zip(row, means, offsets, strict=True):
        box.x = mean + offset - box.width / 2


def _lines(edges: Sequence[tuple[str, str, str]], ways: list[list[Box]], bottoms: list[float]) -> list[Line]:
    """Ends of edges are spread over a card in the order of the cards they lead to, so that they do not cross there."""
    lines = [Line(role) for _, _, role in edges]
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    for name in {box.id for way in ways for box in (way[0], way[-1])}:
        leaving = sorted((number for number, way in enumerate(ways) if way[0].id == name), key=lambda number: ways[number][1].middle)
        coming = sorted((number for number, way in enumerate(ways) if way[-1].id == name), key=lambda number: ways[number][-2].middle)
        for numbers, ports in ((leaving, starts), (coming, ends)):
            for place, number in enumerate(numbers):
                ports[number] = (place - (len(numbers) - 1) / 2) * _PORT
    for number, way in enumerate(ways):
        first, last = way[0], way[-1]
        x = first.middle + starts[number]
        points = [(x, first.y + first.height), (x, bottoms[first.layer])]
        for box in way[1:-1]:
            points += [(box.middle, box.y), (box.middle, box.y + box.height)]
        points.append((last.middle + ends[number], last.y))
        lines[number].points = points
    return lines
