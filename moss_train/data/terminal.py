"""Text for the terminal."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console

_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Screen(Console):
    """A console that leaves it to the program what happens when its reader has gone; rich would end it with exit code 1."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


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
