"""Pictures and pages of a family: cards apart, texts inside them, lines beside them, and nothing loaded from elsewhere."""

from __future__ import annotations

import random
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from moss_train.artifacts import lineage
from moss_train.artifacts.lineage import Lineage, Source
from moss_train.artifacts.lineage_graph import family as graph_of
from moss_train.artifacts.lineage_html import page
from moss_train.artifacts.lineage_layout import Layout, arrange
from moss_train.artifacts.lineage_svg import draw, fitted, picture, text_width
from moss_train.artifacts.lineage_text import amount, measure
from tests.families import Family

SVG = "{http://www.w3.org/2000/svg}"


def curve(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points along a line as it is drawn: a bend between layers, straight through them."""
    found = [points[0]]
    for number, ((x, y), (next_x, next_y)) in enumerate(pairwise(points)):
        if number % 2 == 0:
            found.append((next_x, next_y))
            continue
        if number == len(points) - 2:
            next_y -= 26
        bend = (next_y - y) / 2
        for step in range(1, 33):
            t, s = step / 32, 1 - step / 32
            middle = 3 * s * s * t, 3 * s * t * t
            found.append(
                (
                    s**3 * x + middle[0] * x + middle[1] * next_x + t**3 * next_x,
                    s**3 * y + middle[0] * (y + bend) + middle[1] * (next_y - bend) + t**3 * next_y,
                )
            )
    return found


def check_layout(layout: Layout) -> None:
    """No card touches another, no line crosses a card, everything is on the page, and parents are above children."""
    boxes = list(layout.boxes.values())
    for box in boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= layout.width
        assert box.y + box.height <= layout.height
    for one, other in combinations(boxes, 2):
        apart = one.x + one.width + 8 <= other.x or other.x + other.width + 8 <= one.x
        assert apart or one.y + one.height + 8 <= other.y or other.y + other.height + 8 <= one.y, (one, other)
    for line in layout.lines:
        assert line.points[0][1] < line.points[-1][1]
        for x, y in curve(line.points):
            for box in boxes:
                assert not (box.x < x < box.x + box.width and box.y + 0.01 < y < box.y + box.height - 0.01), (line, box)


@pytest.mark.parametrize("seed", range(40))
def test_any_family_is_laid_out_without_overlaps(seed: int) -> None:
    chance = random.Random(seed)
    names = [f"n{number}" for number in range(chance.randint(1, 24))]
    sizes = {name: (chance.uniform(180, 380), chance.uniform(60, 160)) for name in names}
    edges = [
        (names[parent], names[child], "init")
        for child in range(1, len(names))
        for parent in sorted(chance.sample(range(child), min(child, chance.randint(0, 4))))
    ]
    check_layout(arrange(sizes, edges))


def test_one_line_of_descent_is_a_straight_line() -> None:
    layout = arrange(dict.fromkeys("abcd", (200, 80)), [("a", "b", "init"), ("b", "c", "source"), ("c", "d", "source")])
    assert len({box.middle for box in layout.boxes.values()}) == 1


def test_texts_fit_on_their_cards(family: Family) -> None:
    """Measured with the widest of the fonts that the picture names."""
    pytest.importorskip("PIL")
    from matplotlib import font_manager
    from PIL import ImageFont

    regular, bold = (
        font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight)) for weight in ("normal", "bold")
    )
    graph = graph_of(family.export, [family.root])
    layout, _ = picture(graph)
    check_layout(layout)
    root = ET.fromstring(draw(graph))
    (shifted,) = (group for group in root.findall(f"{SVG}g") if group.get("transform"))
    seen = 0
    for card in shifted.findall(f"{SVG}g"):
        frame = card.find(f"{SVG}rect")
        assert frame is not None
        left, right = float(frame.get("x", 0)), float(frame.get("x", 0)) + float(frame.get("width", 0))
        for text in card.findall(f"{SVG}text"):
            if text.get("text-anchor") == "end":
                continue
            size = float(text.get("font-size", 0))
            font = ImageFont.truetype(bold if text.get("font-weight") else regular, 100)
            spacing = float(text.get("letter-spacing", 0)) * len(text.text or "")
            width = font.getlength(text.text or "") * size / 100 + spacing
            assert left < float(text.get("x", 0)), text.text
            assert float(text.get("x", 0)) + width <= right - 4, text.text
            seen += 1
    assert seen > 20


@pytest.mark.parametrize(
    "text", ["mmmmmWWWWW@@@", "iiiiilllll", "The quick brown fox · 12.3 M tokens", "对话数据.jsonl · 12 records", "ÄÖÜß ñ é", "x" * 200]
)
@pytest.mark.parametrize("is_bold", [False, True])
def test_widths_are_not_less_than_those_of_the_font(text: str, is_bold: bool) -> None:
    pytest.importorskip("PIL")
    from matplotlib import font_manager
    from PIL import ImageFont

    found = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight="bold" if is_bold else "normal"))
    # The font has no Chinese characters; those of others are as wide as they are high.
    own = [ord(character) < 0x2E80 for character in text]
    width = ImageFont.truetype(found, 100).getlength("".join(c for c, is_own in zip(text, own, strict=True) if is_own)) / 10
    width += 10 * own.count(False)
    assert width <= text_width(text, 10, is_bold) <= 1.35 * width + 1


def test_a_text_without_room_is_cut_in_the_middle() -> None:
    text = "a-very-long-name-of-a-data-set-that-nobody-can-read-at-once.jsonl"
    cut = fitted(text, 12, 150)
    assert text_width(cut, 12) <= 150
    assert cut.startswith("a-very")
    assert cut.endswith(".jsonl")
    assert fitted("short", 12, 150) == "short"
    assert fitted(text, 12, 3) == "…"


def test_the_picture_says_what_a_person_asks(family: Family) -> None:
    shown = draw(graph_of(family.export, [family.root]))
    for said in (
        "Lineage of sft/export",
        "8 artefacts · 1 training · 1,000 tokens · 6 GFLOPs",
        "valid/loss 2.125",
        "chat.jsonl · 2 records · CC-BY-4.0",
        "8 bits plain",
        "MADE ELSEWHERE",
        "licence bsd-3-clause",
        ">init<",
        ">source<",
        ">tokenizer<",
        "prefers-color-scheme: dark",
    ):
        assert said in shown, said
    # An export names the start of its training too, so that it is known without the checkpoint; one line is enough.
    assert shown.count(">init<") == 1


def test_an_absent_parent_is_drawn_by_its_name(family: Family, tmp_path: Path) -> None:
    alone = tmp_path / "1" / "2" / "3" / "4" / "5" / "alone"
    shutil.copytree(family.variant, alone)
    graph = graph_of(alone)
    assert [node.kind for node in graph.nodes.values()] == ["variant", "not at hand"]
    assert "stroke-dasharray" in draw(graph)


class Page(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.ids.add(known.get("id") or "")
        self.links += [value for key, value in attrs if key in ("href", "src") and value]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed at once."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(family: Family) -> None:
    text = page(graph_of(family.export, [family.root]))
    found = Page()
    found.feed(text)
    assert found.open == []
    assert found.links
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL))
    assert "<script" not in text
    for said in ("Licences", "bsd-3-clause", "codegen-base", "6 GFLOPs", "prefers-color-scheme: dark", "lr&quot;: 0.001"):
        assert said in text, said


def test_names_cannot_break_out_of_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    hostile = '"><script>alert(1)</script>&]]>'
    made = Lineage("export", hostile, data=[Source(hostile, "0", 1, licence=hostile)], config={hostile: hostile}, metrics={hostile: 1.0})
    lineage.write(tmp_path / "a", replace(made, details={"scheme": hostile, "bits": 4}))
    graph = graph_of(tmp_path / "a")
    ET.fromstring(draw(graph))
    text = page(graph)
    found = Page()
    found.feed(text)
    assert found.open == []
    assert "<script" not in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (999, "999"), (9_999, "9,999"), (10_000, "10 k"), (999_499, "999 k"), (999_999, "1 M"), (6.66e13, "66.6 T")],
)
def test_amounts(value: float, shown: str) -> None:
    assert amount(value) == shown


def test_measures() -> None:
    assert [measure(value, "B") for value in (322, 10_400, 2.5e9)] == ["322 B", "10.4 kB", "2.5 GB"]
