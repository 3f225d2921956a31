"""A dialogue in the terminal: replies appear as they are written, tools run in between."""

from __future__ import annotations

import codecs
import contextlib
import importlib
import io
import sys

from rich.console import Console
from rich.text import Text

from moss_train.data.dialogue import Turn
from moss_train.data.terminal import visible
from moss_train.errors import DataError, UsageError
from moss_train.inference.decoder import Task
from moss_train.inference.speaker import Speaker
from moss_train.inference.transcript import Transcript
from moss_train.inference.turns import Reply

_COMMANDS = ("/new", "/thoughts", "/tools", "/system", "/help")
HELP = """\
  /new        begin a new dialogue
  /thoughts   show or hide inner thoughts, commands and results
  /tools      run tools, or do not
  /system     show the meta instruction
  /quit       leave (also Ctrl-D); Ctrl-C stops a reply"""
_STYLES = {"Inner Thoughts": "italic dim", "Commands": "cyan", "MOSS": ""}
_LABELS = {"Inner Thoughts": "thinks", "Commands": "calls", "MOSS": "MOSS"}


class _Screen:
    """Prints what is written, segment by segment."""

    def __init__(self, speaker: Speaker, console: Console, show_thoughts: bool):
        self.speaker, self.console, self.show_thoughts = speaker, console, show_thoughts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._segment, self._begun = "", False

    def open(self, segment: str) -> None:
        """A segment begins."""
        self._segment, self._begun = segment, False
        self._decoder.reset()

    def token(self, _: int, token: int) -> None:
        """An id was written: its text, as far as its characters are complete."""
        text = self._decoder.decode(self.speaker.tokenizer.token_bytes(token))
        if not text or not self._shown(self._segment):
            return
        if not self._begun:
            text = text.lstrip()
            if not text:
                return
            _put(self.console, f"{_LABELS[self._segment]:>7} ", "bold", end="")
            self._begun = True
        _put(self.console, text, _STYLES[self._segment], end="")

    def close(self) -> None:
        """The segment has ended."""
        if self._begun:
            self.console.print()
        self._begun = False

    def results(self, text: str | None) -> None:
        """What the tools found."""
        if self._shown("Results") and text is not None and text.strip() != "None":
            for number, line in enumerate(text.strip().splitlines()):
                _put(self.console, f"{'tools' if number == 0 else '':>7} ", "bold", end="")
                _put(self.console, line, "green")

    def _shown(self, segment: str) -> bool:
        return segment == "MOSS" or self.show_thoughts


def chat(speaker: Speaker, system: str, console: Console | None = None, show_thoughts: bool = True) -> None:
    """Reads messages from standard input, and answers each, until the input ends.

    Args:
        speaker: Of one slot.
        system: Meta instruction.
        console: Where it is shown; by default the terminal.
        show_thoughts: Whether inner thoughts, commands and results are shown at first; /thoughts changes it.
    """
    console = console or Console(highlight=False)
    screen = _Screen(speaker, console, show_thoughts)
    speaker.decoder.on_token = screen.token
    speaker.decoder.keep_cache = True
    interactive = sys.stdin.isatty()
    if interactive:
        # Arrow keys, and lines longer than the terminal's own 4,096 bytes.
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    transcript, numbered, turns = speaker.begin(system), 1, 0
    if interactive:
        _put(console, "Type a message; /help tells what else there is.", "dim")
    while True:
        message = _read(console, interactive)
        if message is None or message in ("/quit", "/exit"):
            return
        if message in _COMMANDS:
            if message == "/new":
                transcript, numbered = speaker.begin(system), 1
                _put(console, "a new dialogue", "dim")
            elif message == "/thoughts":
                screen.show_thoughts = not screen.show_thoughts
                _put(console, f"inner thoughts are {'shown' if screen.show_thoughts else 'hidden'}", "dim")
            elif message == "/tools":
                speaker.config.tools.run = not speaker.config.tools.run
                _put(console, f"tools are {'on' if speaker.config.tools.run else 'off'}", "dim")
            elif message == "/system":
                _put(console, system, "dim")
            else:
                _put(console, HELP, "dim")
            continue
        # Two strokes at the beginning send one.
        message = message.removeprefix("/") if message.startswith("//") else message
        if not message:
            continue
        before = transcript.copy()
        transcript.begin(Turn(human=f" {message}"))
        try:
            reply = speaker.decoder.one(_shown(speaker.turn(transcript, numbered), transcript, screen), turns)
        except KeyboardInterrupt:
            screen.close()
            _put(console, "(stopped; the message and the reply are left out)", "dim")
            transcript = before
            continue
        except (UsageError, DataError) as error:
            _put(console, f"({error})", "dim")
            transcript = before
            continue
        turns += 1
        screen.close()
        if reply.tool_run is not None:
            numbered = reply.tool_run.next_number
        _tell(reply, console)


def _read(console: Console, interactive: bool) -> str | None:
    """The next message, or None at the end of the input. Bytes that are not text become U+FFFD."""
    try:
        if interactive:
            _put(console, "    you ", "bold blue", end="")
            line = input()
        else:
            line = sys.stdin.readline()
            if not line:
                return None
    except (EOFError, KeyboardInterrupt):
        return None
    message = line.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()
    if not interactive:
        _put(console, "    you ", "bold blue", end="")
        _put(console, message)
    return message


def _put(console: Console, text: str, style: str = "", end: str = "\n") -> None:
    """Prints a text as it is: nothing in it is markup, and nothing moves the cursor."""
    console.print(Text(visible(text), style), end=end, soft_wrap=True, highlight=False, emoji=False, markup=False)


def _shown(task: Task[Reply], transcript: Transcript, screen: _Screen) -> Task[Reply]:
    """The task, with every segment announced to the screen."""
    try:
        write = next(task)
        while True:
            screen.close()
            segment = write.stream.rpartition(":")[2]
            if segment == "MOSS":
                screen.results(transcript.text("results"))
            screen.open(segment)
            written = yield write
            write = task.send(written)
    except StopIteration as ended:
        reply: Reply = ended.value
        return reply


def _tell(reply: Reply, console: Console) -> None:
    """What a reader should know of a reply besides its text."""
    notes = [] if reply.finished else ["cut at max_new_tokens"]
    if reply.dropped_turns:
        notes.append(f"{reply.dropped_turns} earlier turn(s) no longer fit and were left out")
    if reply.citations_beyond:
        notes.append(f"{reply.citations_beyond} citation(s) point to no result")
    if reply.tool_run is not None:
        notes += list(reply.tool_run.problems)
        notes += [f"image: {path}" for path in reply.tool_run.images]
    for note in notes:
        _put(console, f"({note})", "dim")
