"""The tool half of the plugin protocol: from what the model wrote as Commands to what stands in Results.

    pass 1   <|Commands|>: Search("Paris"), Calculate("2+3")<eoc>
    tools    Toolbox.run ──> read the calls, leave out what is switched off, run at most four at once, write the blocks
    pass 2   <|Results|>:\\nSearch("Paris") =>\\n<|1|>: '...'\\nCalculate("2+3") => '5'\\n<eor>

Nothing a tool does, or says, gets further than its block: a tool that fails is `No result.` there, and the spellings of role markers and
control tokens are taken out of what comes back. Tools never call tools; only a turn of the model can.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from moss_train.config import Plugin
from moss_train.data.dialogue import SEGMENT_KINDS
from moss_train.data.formats.calls import ARGUMENT_OF, Call, scan_commands, write_commands, write_results
from moss_train.data.formats.fields import NONE
from moss_train.data.switches import SWITCH
from moss_train.errors import UsageError
from moss_train.inference.tools.calculator import calculate
from moss_train.inference.tools.deadline import run_together
from moss_train.inference.tools.failure import ToolFailure
from moss_train.inference.tools.http import Client
from moss_train.inference.tools.search import Passage, Search
from moss_train.inference.tools.solver import solve
from moss_train.inference.tools.text2image import Text2Image

TOOL_OF: Mapping[Plugin, str] = {
    Plugin.web_search: "Search",
    Plugin.calculator: "Calculate",
    Plugin.equation_solver: "Solve",
    Plugin.text_to_image: "Text2Image",
}
"""The name in Commands of what each switch turns on."""

NO_CALLS = NONE
NO_RESULTS = "\nNone\n"
"""Contents of Commands and Results of a turn without calls, as in the published dialogues with plugins."""

_FAILED = "No result."
_DRAWN = "Image generated successfully."
# Any text between such brackets could be read as a marker, citations included; < and | also in their full-width forms.
_WORDS = "|".join(kind.opening[2:-3] for kind in SEGMENT_KINDS)
_MARKER = re.compile(
    rf"[<＜]\s*[|｜][^<>＜＞\n]{{0,60}}?[|｜]\s*[>＞][:：]?|[<＜]\s*/?eo[a-z]\s*[>＞]|[<＜]endoftext[>＞]|\[(?:{_WORDS})\][:：]",
    re.IGNORECASE,
)
_CITATION = re.compile(r"<\|([0-9]+)\|>")


@dataclass(frozen=True)
class Limits:
    """Bounds of a turn's tools.

    Attributes:
        calls: Calls that are run; further ones are left out.
        seconds: For all calls of a turn together, which run at once. Each tool has a shorter limit of its own.
        characters: Of one search result.
    """

    calls: int = 4
    seconds: float = 60.0
    characters: int = 400


@dataclass(frozen=True)
class ToolRun:
    """What came of a turn's Commands.

    Attributes:
        commands_text: Content of Commands with the calls that were run, or ` None`: what should stand in the dialogue.
        results_text: Content of Results.
        calls: The calls that were run, in order.
        images: Files of the images that were drawn.
        sources: Search results, for people; the first has the number that `run` was given.
        problems: A sentence for each call that was left out or failed, for people.
        next_number: The number that the next search result would have.
    """

    commands_text: str
    results_text: str
    calls: tuple[Call, ...] = ()
    images: tuple[Path, ...] = ()
    sources: tuple[Passage, ...] = ()
    problems: tuple[str, ...] = ()
    next_number: int = 1


class Toolbox:
    """The tools of a chat. One that is None is not there: its calls have no result.

    Args:
        search: Takes a query; gives passages, best first.
        calculate: Takes an expression; gives its value as text.
        solve: Takes equations; gives a line for each value.
        draw: Takes a description; gives the file of an image.
        limits: Bounds.
    """

    def __init__(
        self,
        *,
        search: Callable[[str], Sequence[Passage]] | None = None,
        calculate: Callable[[str], str] | None = calculate,
        solve: Callable[[str], str] | None = solve,
        draw: Callable[[str], Path] | None = None,
        limits: Limits = Limits(),
    ):
        self._tools: Mapping[str, Callable[[str], Any] | None] = {
            "Search": search,
            "Calculate": calculate,
            "Solve": solve,
            "Text2Image": draw,
        }
        self._limits = limits

    def run(self, commands: str, enabled: Collection[Plugin], first_number: int = 1) -> ToolRun:
        """Runs the calls in Commands.

        Args:
            commands: Content of the segment, as the model wrote it.
            enabled: Switches that are on.
            first_number: Number of the first search result. The published dialogues begin anew with 1 in each turn.
        """
        calls = scan_commands(commands)
        if calls is None:
            is_none = commands.strip().rstrip(".。") in ("", "None")
            unread = () if is_none else (f"Commands cannot be read as calls: {commands.strip()[:100]!r}",)
            return ToolRun(NO_CALLS, NO_RESULTS, problems=unread, next_number=first_number)
        names = {TOOL_OF[plugin] for plugin in enabled if plugin in TOOL_OF}
        problems = [f"{call.name}: no tool that is switched on" for call in calls if call.name not in names]
        wanted = []
        for call in calls:
            text = call.arguments.get(ARGUMENT_OF[call.name]) if call.name in names else None
            if isinstance(text, str) and len(call.arguments) == 1:
                # The call is repeated in Results: it is kept on one line, and holds no markers either.
                wanted.append(Call(call.name, {ARGUMENT_OF[call.name]: " ".join(strip_markers(text).split("\n"))}))
            elif call.name in names:
                problems.append(f"{call.name}: its argument is not one text")
        problems += [f"{call.name}: only {self._limits.calls} calls are run" for call in wanted[self._limits.calls :]]
        wanted = wanted[: self._limits.calls]
        if not wanted:
            return ToolRun(NO_CALLS, NO_RESULTS, problems=tuple(problems), next_number=first_number)
        found = run_together([partial(self._use, call) for call in wanted], self._limits.seconds)
        return self._write(wanted, found, problems, first_number)

    def _use(self, call: Call) -> Any:
        tool = self._tools[call.name]
        if tool is None:
            raise ToolFailure("no such tool is set up")
        return tool(call.arguments[ARGUMENT_OF[call.name]])

    def _write(self, calls: Sequence[Call], found: Sequence[Any], problems: list[str], first_number: int) -> ToolRun:
        texts: list[str] = []
        sources: list[Passage] = []
        images: list[Path] = []
        for call, result in zip(calls, found, strict=True):
            text = _FAILED
            if isinstance(result, Exception):
                problems.append(f"{call.name}: {strip_markers(str(result)) or type(result).__name__}")
            elif call.name == "Search":
                lines = []
                for passage in result:
                    clean = Passage(*map(strip_markers, passage))
                    lines.append(f"<|{first_number + len(sources)}|>: {clean.text[: self._limits.characters]!r}")
                    sources.append(clean)
                text = "\n".join(lines) or _FAILED
            elif call.name == "Text2Image":
                images.append(result)
                text = _DRAWN
            else:
                text = strip_markers(result)
            # Published results of the calculator stand in quotes, failures too.
            texts.append(repr(text) if call.name == "Calculate" else text)
        # An image alone has no block.
        alone = len(calls) == 1 and calls[0].name == "Text2Image"
        return ToolRun(
            commands_text=write_commands(calls),
            results_text=f" {texts[0]}" if alone else write_results(calls, texts),
            calls=tuple(calls),
            images=tuple(images),
            sources=tuple(sources),
            problems=tuple(problems),
            next_number=first_number + len(sources),
        )


def make_toolbox(
    *,
    search_url: str | None = None,
    image_url: str | None = None,
    image_directory: Path | None = None,
    allow: Collection[str] = (),
    limits: Limits = Limits(),
) -> Toolbox:
    """The calculator, the solver, and the services that are named.

    Args:
        search_url: A search endpoint (the protocol is in `tools/search.py`).
        image_url: An endpoint that draws (`tools/text2image.py`).
        image_directory: Where images are saved; needed with `image_url`.
        allow: Endpoints that are not on the public internet or not on a standard port, as `host:port`.

    Raises:
        UsageError: A URL is none, or there is no directory for images.
    """
    if image_url is not None and image_directory is None:
        raise UsageError("an endpoint for images needs a directory to save them in")
    search = None if search_url is None else Search(search_url, Client(allow=allow))
    draw = None
    if image_url is not None and image_directory is not None:
        draw = Text2Image(image_url, Client(allow=allow, seconds=limits.seconds, max_bytes=16 * 2**20), image_directory)
    return Toolbox(search=search, draw=draw, limits=limits)


def switched_on(meta_instruction: str) -> frozenset[Plugin]:
    """The tools that a meta instruction names as enabled."""
    named = {found["api"] for found in SWITCH.finditer(meta_instruction)}
    return frozenset(plugin for plugin, name in TOOL_OF.items() if name in named)


def citations_beyond(reply: str, next_number: int) -> int:
    """How many citations (`<sup><|3|></sup>`) of a reply point to no result.

    Args:
        next_number: Of the turn's `ToolRun`: results have the numbers below it.
    """
    return sum(not 1 <= int(number[:9]) < next_number for number in _CITATION.findall(reply))


def strip_markers(text: str) -> str:
    """A text from outside without spellings of role markers, control tokens and citations, each replaced by a blank."""
    # Invisible characters go first: with one inside, a marker looks the same to people and is none to a pattern.
    text = "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Co", "Cs"))
    while (stripped := _MARKER.sub(" ", text)) != text:
        # What stood around a marker may form another.
        text = stripped
    return text
