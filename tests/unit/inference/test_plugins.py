"""From Commands to Results."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moss_train.config import Plugin
from moss_train.data.dialogue import meta_instruction
from moss_train.data.formats.calls import Call, read_results, scan_commands
from moss_train.data.outcomes import find_outcomes
from moss_train.errors import UsageError
from moss_train.inference.plugins import Limits, Toolbox, citations_beyond, make_toolbox, strip_markers, switched_on
from moss_train.inference.tools.search import Passage

ALL = frozenset(Plugin)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (' Calculate("2+3")', [("Calculate", "2+3")]),
        ('Search("a"),Search("b")', [("Search", "a"), ("Search", "b")]),
        (' Search("a"), \nSearch("b"),\n', [("Search", "a"), ("Search", "b")]),
        (" Search(\"it's (a) test, isn't it?\")", [("Search", "it's (a) test, isn't it?")]),
        (' Solve("x=1") ', [("Solve", "x=1")]),
        (' Text2Image({"description": "a \\"b\\""})', [("Text2Image", 'a "b"')]),
    ],
)
def test_calls_are_read(text: str, calls: list[tuple[str, str]]) -> None:
    found = scan_commands(text)
    assert found is not None
    assert [(call.name, next(iter(call.arguments.values()))) for call in found] == calls


@pytest.mark.parametrize(
    "text",
    [
        *(" None", "", " ", " None.", ' 1. Calculate("2")', ' Calculate("2") # two', ' Calculate("2") Calculate("3")', " Calculate(2)"),
        *(
            ' Calculate("2',
            ' Calculate("2")), Calculate("3")',
            ' Solve("2x=3", "x")',
            ',Search("a")',
            ' Search("a"),,Search("b")',
            " Search('a')",
        ),
        *(' Search({"query": 1}', ' Search({"query": "a"} )', ' Search({"query": NaN})'),
    ],
)
def test_what_is_not_a_list_of_calls_is_none(text: str) -> None:
    assert scan_commands(text) is None
    run = Toolbox().run(text, ALL, 7)
    assert (run.commands_text, run.results_text, run.calls, run.next_number) == (" None", "\nNone\n", (), 7)
    assert len(run.problems) == (text.strip() not in ("", "None", "None."))


def test_blocks_are_as_published() -> None:
    passages = [Passage("plain"), Passage("it's"), Passage("both \" and '\nhere\u3000")]
    run = Toolbox(search=lambda query: passages).run(
        ' Search("q"), Calculate("pi*3^2*20"), Solve("y=(5/4)*(x-y);y-40=(1/10)*(x-y+40)"), Calculate("a+1")', ALL
    )
    assert run.results_text == (
        "\nSearch(\"q\") =>\n<|1|>: 'plain'\n<|2|>: \"it's\"\n<|3|>: 'both \" and \\'\\nhere\\u3000'\n"
        "Calculate(\"pi*3^2*20\") => '565.4866776461628'\n"
        'Solve("y=(5/4)*(x-y);y-40=(1/10)*(x-y+40)") =>\nx = 86.0869565217391\ny = 47.8260869565217\n'
        "Calculate(\"a+1\") => 'No result.'\n"
    )
    assert run.next_number == 4
    assert [call.name for call in run.calls] == ["Search", "Calculate", "Solve", "Calculate"]
    # What reads training data reads it too.
    assert read_results(run.results_text, run.calls) is not None


def test_an_image_alone_has_no_block(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    run = Toolbox(draw=lambda description: image).run(' Text2Image("a rock")', ALL)
    assert (run.results_text, run.images) == (" Image generated successfully.", (image,))
    assert Toolbox().run(' Text2Image("a rock")', ALL).results_text == " No result."
    run = Toolbox(draw=lambda description: image).run(' Text2Image("a rock"), Calculate("1+1")', ALL)
    assert run.results_text == '\nText2Image("a rock") =>\nImage generated successfully.\nCalculate("1+1") => \'2\'\n'


def test_published_blocks_are_reproduced(real_data: Path) -> None:
    """Of every published turn that only calculates, and whose values have the same digits."""
    same = 0
    for name in ("train.jsonl", "dev.jsonl"):
        for line in (real_data / "moss-003-sft-sample" / name).open(encoding="utf-8"):
            for turn in json.loads(line)["chat"].values():
                commands = turn["Commands"].removeprefix("<|Commands|>:").removesuffix("<eoc>\n")
                results = turn["Tool Responses"].removeprefix("<|Results|>:").removesuffix("<eor>\n")
                calls = scan_commands(commands)
                if not calls or not {call.name for call in calls} <= {"Calculate"} or len(calls) > 4:
                    continue
                run = Toolbox().run(commands, [Plugin.calculator])
                published = re.findall(r"=> '(.*)'$", results, re.MULTILINE)
                ours = re.findall(r"=> '(.*)'$", run.results_text, re.MULTILINE)
                if published == ours:
                    assert run.results_text == results
                    same += 1
    assert same > 150


def test_switched_off_and_unknown_tools_are_left_out_of_commands_too() -> None:
    run = Toolbox().run(' Search("a"), Calculate("2+3"), Count("b")', [Plugin.calculator, Plugin.inner_thoughts])
    assert (run.commands_text, run.results_text) == (' Calculate("2+3")', "\nCalculate(\"2+3\") => '5'\n")
    assert len(run.problems) == 2
    run = Toolbox().run(' Search("a")', [Plugin.calculator], 3)
    assert (run.commands_text, run.results_text, run.next_number) == (" None", "\nNone\n", 3)
    run = Toolbox().run(' Calculate({"expression": ["<|MOSS|>:"]}), Calculate({"a": "1"})', ALL)
    assert (run.commands_text, len(run.problems)) == (" None", 2)


def test_at_most_four_calls_run() -> None:
    run = Toolbox().run(" " + ", ".join(f'Calculate("{number}+1")' for number in range(7)), ALL)
    assert [call.arguments["expression"] for call in run.calls] == ["0+1", "1+1", "2+1", "3+1"]
    assert run.commands_text.count("Calculate") == run.results_text.count("Calculate") == 4
    assert len(run.problems) == 3


def test_calls_run_at_once_and_keep_their_order() -> None:
    everyone = threading.Barrier(4, timeout=20)

    def search(query: str) -> list[Passage]:
        # Passes only when all four are here; the first call is the last to end.
        everyone.wait()
        time.sleep(0.2 if query == "0" else 0)
        return [Passage(query)]

    run = Toolbox(search=search).run(" " + ", ".join(f'Search("{number}")' for number in range(4)), ALL)
    assert [source.text for source in run.sources] == ["0", "1", "2", "3"]
    assert re.findall(r"<\|(\d)\|>: '(\d)'", run.results_text) == [("1", "0"), ("2", "1"), ("3", "2"), ("4", "3")]


@pytest.mark.parametrize("error", [ValueError("a"), MemoryError(), RecursionError("deep"), SystemError("<|MOSS|>: \x1b[2J")])
def test_a_tool_that_fails_is_no_result_and_no_more(error: Exception) -> None:
    def search(query: str) -> list[Passage]:
        raise error

    run = Toolbox(search=search).run(' Search("a"), Calculate("1+1")', ALL)
    assert run.results_text == '\nSearch("a") =>\nNo result.\nCalculate("1+1") => \'2\'\n'
    assert len(run.problems) == 1
    assert "\x1b" not in run.problems[0]
    assert [outcome.failed for outcome in find_outcomes_of(run.results_text)] == [True, False]


def find_outcomes_of(results: str) -> list[object]:
    from moss_train.data.dialogue import Turn

    return list(find_outcomes(Turn(" a", results=results)))


def test_a_tool_that_hangs_is_not_waited_for() -> None:
    release = threading.Event()

    def search(query: str) -> list[Passage]:
        release.wait(20)
        return []

    begin = time.monotonic()
    run = Toolbox(search=search, limits=Limits(seconds=0.5)).run(' Search("a"), Calculate("1+1")', ALL)
    release.set()
    assert time.monotonic() - begin < 5
    assert run.results_text == '\nSearch("a") =>\nNo result.\nCalculate("1+1") => \'2\'\n'


def test_results_are_cut_and_cleaned() -> None:
    run = Toolbox(search=lambda query: [Passage("x" * 1000 + "<|MOSS|>:", "a\x1b[2Jb<eom>")], limits=Limits(characters=10)).run(
        ' Search("a\nb<|Human|>: c")', ALL
    )
    assert run.results_text == "\nSearch(\"a b  c\") =>\n<|1|>: 'xxxxxxxxxx'\n"
    assert run.commands_text == ' Search("a b  c")'
    assert run.sources[0].title == "a[2Jb "


def test_stripping_leaves_other_text_alone() -> None:
    text = "a < b, |x| > 3, <b>bold</b>, if (a<|b) {}, 标题｜网站 <eo> [Humans] e.g. <sup>2</sup> 😀 é\n\tnext"
    assert strip_markers(text) == text


@pytest.mark.parametrize(
    ("reply", "beyond"),
    [("", 0), (" a<sup><|1|></sup><sup><|2|></sup>", 0), (" a<sup><|3|><|4|></sup>", 2), (" <|0|>", 1), (f" <|{'9' * 5000}|>", 1)],
)
def test_citations_beyond_the_results_are_counted(reply: str, beyond: int) -> None:
    assert citations_beyond(reply, 3) == beyond


def test_switches_are_read_from_a_meta_instruction() -> None:
    assert switched_on(meta_instruction(inner_thoughts=True, web_search=True, equation_solver=True)) == {
        Plugin.web_search,
        Plugin.equation_solver,
    }
    assert switched_on("") == frozenset()


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_toolbox(search_url="ftp://example.com/"),
        lambda: make_toolbox(search_url="http://user@example.com/"),
        lambda: make_toolbox(image_url="http://example.com/"),
        lambda: make_toolbox(image_url="example.com", image_directory=Path("images")),
    ],
)
def test_wrong_endpoints_are_refused_at_once(make: Callable[[], Toolbox]) -> None:
    with pytest.raises(UsageError):
        make()


def test_calls_keep_their_arguments() -> None:
    assert scan_commands(' Search({"query": "a\\"b"})') == [Call("Search", {"query": 'a"b'})]
    run = Toolbox(search=lambda query: [Passage(query)]).run(' Search({"query": "a\\"b"})', ALL)
    assert run.results_text == '\nSearch({"query": "a\\"b"}) =>\n<|1|>: \'a"b\'\n'
