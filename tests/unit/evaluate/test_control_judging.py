"""What is known of a reply besides its reward: its calls, and whether it is correct."""

from __future__ import annotations

import pytest

from moss_train.config import Plugin
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats.calls import Call
from moss_train.errors import DataError
from moss_train.evaluate.control_judging import calls_of, check
from moss_train.evaluate.control_task import check_checkers
from moss_train.inference.plugins import Toolbox, ToolRun
from moss_train.inference.turns import Reply
from moss_train.pm.sample import Prompt


def reply(text: str = " 5", commands: str | None = None, run: ToolRun | None = None, finished: bool = True) -> Reply:
    return Reply(
        moss=text, thoughts=None, commands=commands, results=None, finished=finished, repaired=0, dropped_turns=0, citations_beyond=0,
        tool_run=run, tokens=3, log_probability=-1.0,
    )  # fmt: skip


def prompt(**extra: object) -> Prompt:
    return Prompt(Dialogue("q", "", (Turn(" 2+3?"),), origin="q.jsonl:1"), dict(extra))


def run_of(commands: str) -> ToolRun:
    return Toolbox().run(commands, {Plugin.calculator})


def test_calls_are_formed_where_they_were_read_and_run() -> None:
    read = run_of(' Calculate("2+3")')
    assert read.calls == (Call("Calculate", {"expression": "2+3"}),)
    assert calls_of(reply(commands=read.commands_text, run=read)) == (True, True)
    # What cannot be read, or calls what is not switched on, stands as None in the reply; the run tells.
    for written in (' Calculate("2+3', ' Search("x")'):
        failed = run_of(written)
        assert failed.commands_text == " None"
        assert calls_of(reply(commands=failed.commands_text, run=failed)) == (True, False)
    assert calls_of(reply(commands=" None")) == (False, False)
    assert calls_of(reply()) == (False, False)


def test_without_tools_commands_are_read_as_they_stand() -> None:
    assert calls_of(reply(commands=' Calculate("2+3")')) == (True, True)
    assert calls_of(reply(commands=' Calculate("2+3')) == (True, False)
    assert calls_of(reply(commands=" None.")) == (False, False)


def test_a_reply_is_correct_as_in_ranking() -> None:
    replies = [reply(" It is 5."), reply(" 6"), reply(" 5", finished=False), reply("")]
    assert check(prompt(checker="number", answer="5"), replies) == [True, False, False, False]
    assert check(prompt(answer="5"), replies) == [None] * 4


def test_checkers_that_lack_something_are_told_before_anything_is_answered() -> None:
    check_checkers([prompt(checker="exact", answer="5"), prompt()])
    with pytest.raises(DataError, match=r"(?s)no_answer.*unknown_checker"):
        check_checkers([prompt(checker="exact"), prompt(checker="spell", answer="5")])
