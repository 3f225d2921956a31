"""Which calls ask the same, and which replies use what was found."""

from __future__ import annotations

import pytest

from moss_train.data.formats.calls import Call
from moss_train.evaluate.tool_calls import equivalent, same_calls, uses_result, well_formed


def call(name: str, text: str) -> Call:
    argument = {"Search": "query", "Calculate": "expression", "Solve": "equation", "Text2Image": "description"}.get(name, "input")
    return Call(name, {argument: text})


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("Calculate", "2+3", "3 + 2", True),
        ("Calculate", "2+3", "2-3", False),
        ("Calculate", "1/3", "0.3333", False),
        ("Calculate", "(250-8)/250*100", "242/2.5", True),
        ("Calculate", "99×65", "65*99", True),
        # No value, since a name has none: they agree as functions of it.
        ("Calculate", "2*(price+1)", "2*price + 2", True),
        ("Calculate", "2*(price+1)", "2*price + 1", False),
        ("Calculate", "what is 2+3", "what is 2+3", True),
        ("Calculate", "what is 2+3", "what is 2-3", False),
        ("Solve", "x+y=35;2x+4y=94", "2x+4y=94, x+y=35", True),
        ("Solve", "x+y=35;2x+4y=94", "x+2y=47; y=35-x", True),
        ("Solve", "x+y=35;2x+4y=94", "a+b=35;2a+4b=94", True),
        ("Solve", "x+y=35;2x+4y=94", "x+y=35;2x+4y=93", False),
        # Fewer equations than unknowns have no solution to compare.
        ("Solve", "x*y=12;x=y+z", "y*x-12=0; 2x=2z+2y", True),
        ("Search", "Capital of France?", "capital  of france", True),
        ("Search", "“浮士德”的作者", "浮士德的作者", True),
        ("Search", "capital of France", "capital of Spain", False),
        ("Text2Image", "a black duck", "A black duck.", True),
    ],
)
def test_equivalence(name: str, one: str, other: str, same: bool) -> None:
    assert equivalent(call(name, one), call(name, other)) is same
    assert equivalent(call(name, other), call(name, one)) is same


def test_calls_in_any_order_each_once() -> None:
    one, two = call("Search", "a b"), call("Calculate", "1+1")
    assert same_calls([one, two], [two, one])
    assert not same_calls([one, one], [one, two])
    assert not same_calls([one], [one, two])
    assert same_calls([], [])
    assert not equivalent(call("Search", "1+1"), two)


def test_well_formed() -> None:
    assert well_formed([call("Search", "a")])
    assert not well_formed(None)
    assert not well_formed([])
    assert not well_formed([call("Book", "a")])
    assert not well_formed([Call("Search", {"query": "a", "count": 3})])


@pytest.mark.parametrize(
    ("name", "result", "reply", "uses"),
    [
        ("Calculate", "'15'", "The sum is 15.", True),
        ("Calculate", "'15'", "The sum is 150.", False),
        ("Calculate", "'25.0'", "25 each.", True),
        ("Calculate", "'96.8372'", "about 96.84 %", True),
        ("Calculate", "'96.8372'", "about 97", True),
        ("Calculate", "'96.8372'", "about 96", False),
        ("Calculate", "'0.968'", "合格率是96.8%。", True),
        ("Calculate", "'0.3'", "0 of them", False),
        ("Calculate", "'1234567'", "1,234,567 in all", True),
        ("Calculate", "'No result.'", "15", None),
        ("Solve", "x = 23\ny = 12", "鸡有23只", True),
        ("Solve", "x = 17/3", "x = 17/3", True),
        ("Solve", "x = 17/3", "x = 18/3", False),
        ("Solve", "No result.", "x = 3", None),
        ("Search", "<|1|>: 'Cairo'\n<|2|>: 'Giza'", "Cairo.<sup><|1|></sup>", True),
        ("Search", "<|1|>: 'Cairo'", "Cairo.<sup><|4|></sup>", False),
        ("Search", "<|1|>: 'Cairo'", "Cairo.", False),
        ("Text2Image", "Image generated successfully.", "Here it is.", None),
    ],
)
def test_replies_use_results(name: str, result: str, reply: str, uses: bool | None) -> None:
    assert uses_result(reply, call(name, "a"), result) is uses
