"""Text for the terminal, and the end of a program that prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console

from moss_train.errors import MossTrainError

_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Screen(Console):
    """A console that leaves it to the program what happens when its reader has gone; rich would end it with exit code 1."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def exit_code_of(command: Callable[[], int]) -> int:
    """Runs a command that prints, and tells its errors; returns the exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal without UTF-8 shows escapes instead of failing.
        sys.stdout.reconfigure(errors="backslashreplace")
    code = 0
    try:
        code = command()
        sys.stdout.flush()
    except MossTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader (`head`, `less`) has seen enough. Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    return code


def visible(text: str) -> str:
    """Control characters and direction overrides as symbols: a record must not move the cursor or turn lines around."""
    shown = []
    for character in text:
        code = ord(character)
        if code < 32 and character not in "\n\t":
            shown.append(chr(0x2400 + code))
        elif 0x7F <= code < 0xA0 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069:
            shown.append(f"<U+{code:04X}>")
        else:
            shown.append(character)
    return "".join(shown)


def count(number: int, name: str, several: str | None = None) -> str:
    """A number of things: `1 dialogue`, `1,000 dialogues`; `several` where the plural is not one more s."""
    return f"{number:,} {name if number == 1 else several or name + 's'}"


def bar(share: float, width: int) -> str:
    """A bar of up to `width` characters, to an eighth of one; what is not nothing shows.

    Args:
        share: From 0 to 1.
        width: Characters of the whole.
    """
    eighths = min(width * 8, max(round(share * width * 8), 1 if share > 0 else 0))
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
