"""What a chat prints is what the model wrote, and moves no cursor."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from moss_train.data.tokenizer import MossTokenizer
from moss_train.inference import terminal
from moss_train.inference.config import SpeakerConfig
from moss_train.inference.speaker import Speaker
from tests.tagged_models import export_tagged, tagged_model


@pytest.fixture(scope="module")
def tokenizer() -> MossTokenizer:
    return MossTokenizer.train([""], 256 + 7 + 8, reserved_tags=8)


def shown(tokenizer: MossTokenizer, content: bytes, segment: str = "MOSS") -> str:
    """A segment as it is printed, a token a byte."""
    out = io.StringIO()
    console: Any = Console(file=out, width=40)
    speaker: Any = SimpleNamespace(tokenizer=tokenizer)
    screen = terminal._Screen(speaker, console, show_thoughts=True)
    places = {tokenizer.token_bytes(number): number for number in range(256)}
    screen.open(segment)
    for byte in content:
        screen.token(0, places[bytes([byte])])
    screen.close()
    return out.getvalue()


@pytest.mark.parametrize("text", ["a\\ b \\[x] [bold]c[/]", ":smile: 100 :100:", "你好，世界 🎉", "C:\\dir\\", "a long line " * 10, "[/]"])
def test_text_is_shown_as_it_is(tokenizer: MossTokenizer, text: str) -> None:
    assert shown(tokenizer, text.encode()) == f"   MOSS {text}\n"


def test_nothing_moves_the_cursor(tokenizer: MossTokenizer) -> None:
    for attack in ("\x1b]52;c;aGk=\x07", "\x1b[2J", "\x0e", "a\rb", "\u202eevil", "\x9b31m"):
        printed = shown(tokenizer, attack.encode())
        assert not any(ord(character) < 32 and character != "\n" for character in printed)
        assert "\u202e" not in printed
        assert "\x9b" not in printed


def test_bytes_that_are_no_text_are_replaced(tokenizer: MossTokenizer) -> None:
    assert shown(tokenizer, b"a\xe4\xbdb") == "   MOSS a\ufffdb\n"


def test_a_message_may_hold_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\udcffc\n"))
    assert terminal._read(Console(file=io.StringIO()), interactive=False) == "ab\ufffdc"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert terminal._read(Console(file=io.StringIO()), interactive=False) is None


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_chat_goes_on_after_a_reply_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guidance: float) -> None:
    """As if the message had not been said."""
    directory = export_tagged(tmp_path / "export", *tagged_model())
    config = SpeakerConfig(str(directory), temperature=0.0, max_new_tokens=8, guidance=guidance)

    def said(messages: str, stopped: int | None = None) -> list[str]:
        """The lines of a chat in which the id of this number, if any, is the last before Ctrl-C."""
        out, shown = io.StringIO(), []
        real = terminal._Screen.token

        def token(screen: Any, row: int, one: int) -> None:
            shown.append(one)
            real(screen, row, one)
            if len(shown) == stopped:
                raise KeyboardInterrupt

        monkeypatch.setattr(terminal._Screen, "token", token)
        monkeypatch.setattr(sys, "stdin", io.StringIO(messages))
        terminal.chat(Speaker(config, 1), "", Console(file=out, width=200))
        monkeypatch.setattr(terminal._Screen, "token", real)
        return out.getvalue().splitlines()

    stopped = said("first\nsecond\nthird\n", stopped=2)
    place = stopped.index("(stopped; the message and the reply are left out)")
    assert stopped[place + 1 :] == said("second\nthird\n")
