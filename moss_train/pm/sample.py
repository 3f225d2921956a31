"""Several sampled responses to each prompt, in the layout of `data.comparisons`, for people or programs to rank.

Response j of K to prompt i draws from the random numbers of row i * K + j, whatever else is left to do. So the file is the same, byte for
byte, from any number of ranks, in batches of any size (on a CPU), and after any number of interruptions: what is finished is kept.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.data.comparisons import context_to_json, response_to_json
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats import parse
from moss_train.data.formats.fields import read_id
from moss_train.data.records import read_records
from moss_train.data.sources import source_of
from moss_train.errors import DataError, MossTrainError, OutOfMemoryError
from moss_train.inference import together
from moss_train.inference.generate import read_questions, system_text
from moss_train.inference.speaker import Speaker
from moss_train.inference.turns import Reply
from moss_train.pm.partial import Partial
from moss_train.pm.sample_config import SampleConfig

_log = logging.getLogger("moss_train")
_OWN = ("origin", "context", "responses")
"""Keys of a line that no prompt can bring along."""
_OF_DIALOGUES = ("language", "category", "answer")
"""Keys that a record of a dialogue brings along: others belong to its layout."""
_TOLD_EVERY = 10.0
"""Seconds between two lines about how far it has come."""


@dataclass(frozen=True)
class Prompt:
    """What is answered.

    Attributes:
        context: Its last turn holds the human part alone.
        extra: What its record says besides, for whoever judges the responses.
    """

    context: Dialogue
    extra: dict[str, Any] = field(default_factory=dict)


def read_prompts(config: SampleConfig) -> list[Prompt]:
    """All prompts of the file, in its order.

    Raises:
        DataError: The file cannot be read, holds none, or a record has a key that belongs to the line of responses.
    """
    return _of_questions(config) if config.dialogue is None else _of_dialogues(config.dialogue)


def _of_questions(config: SampleConfig) -> list[Prompt]:
    system = system_text(config)
    found = []
    for number, (origin, text, record) in enumerate(read_questions(config.prompts or "")):
        if taken := [name for name in _OWN if name in record]:
            raise DataError(f"{origin}: the record has the key {taken[0]!r}, under which something else will stand; give it another name")
        context = Dialogue(read_id(record, str(number)), system, (Turn(human=f" {text.strip()}"),), origin=origin)
        extra = {name: value for name, value in record.items() if name not in ("prompt", "id") and value is not None}
        found.append(Prompt(context, extra))
    return found


def _of_dialogues(spec: str) -> list[Prompt]:
    found = []
    for record in read_records(spec):
        dialogue = parse(record.value, record.origin, open_end=True)
        extra = {name: record.value[name] for name in _OF_DIALOGUES if record.value.get(name) is not None}
        found.append(Prompt(_without_answer(dialogue), extra))
    return found


def _without_answer(dialogue: Dialogue) -> Dialogue:
    *before, last = dialogue.turns
    return Dialogue(dialogue.id, dialogue.meta_instruction, (*before, Turn(human=last.human)), dialogue.category, dialogue.origin)


def to_line(prompt: Prompt, replies: list[Reply]) -> dict[str, Any]:
    """A prompt and all responses to it as a line of `out`."""
    context = prompt.context
    return {
        "id": context.id,
        "origin": context.origin,
        **prompt.extra,
        "context": context_to_json(context),
        "responses": [_response(context.turns[-1].human, reply) for reply in replies],
    }


def _response(human: str, reply: Reply) -> dict[str, Any]:
    turn = Turn(human, reply.thoughts, reply.commands, reply.results, reply.moss)
    found: dict[str, Any] = {
        **response_to_json(turn),
        "finish": "stop" if reply.finished else "length",
        "tokens": reply.tokens,
        "log_probability": reply.log_probability,
    }
    if reply.dropped_turns:
        found["dropped_turns"] = reply.dropped_turns
    if reply.tool_run is not None and reply.tool_run.problems:
        found["tool_problems"] = list(reply.tool_run.problems)
    return found


def sample(speaker: Speaker, prompts: list[Prompt], numbers: list[int], samples: int) -> Iterator[tuple[int, list[Reply]]]:
    """The responses to some of the prompts, in the order in which the last of each ends.

    Args:
        speaker: The model.
        prompts: All of them.
        numbers: Those to answer, by number.
        samples: Responses to each.
    """
    rows = ((number * samples + one, prompts[number].context) for number in numbers for one in range(samples))
    waiting: dict[int, dict[int, Reply]] = {}
    for row, reply in speaker.reply_all(rows):
        number, one = divmod(row, samples)
        replies = waiting.setdefault(number, {})
        replies[one] = reply
        if len(replies) == samples:
            del waiting[number]
            yield number, [replies[place] for place in range(samples)]


def _settings(config: SampleConfig, model: lineage.Parent, source: lineage.Source) -> dict[str, Any]:
    """All that the responses follow from. The batch size is not among them."""
    settings = {
        "model": model.id,
        "data": source.sha256,
        "taken_from": "prompts" if config.dialogue is None else "dialogue",
        "samples": config.samples,
        "seed": config.seed,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "repetition_penalty": config.repetition_penalty,
        "max_new_tokens": config.max_new_tokens,
        "system": system_text(config) if config.dialogue is None else None,
        "thoughts": config.writes_thoughts,
        # Which level `auto` and `best` are follows from the model.
        "tag": config.tag,
        "guidance": config.guidance,
        "guidance_from": None if config.guidance == 1 else config.guidance_from,
        "tools": asdict(config.tools) if config.writes_thoughts else None,
        "dtype": config.dtype.value,
        "attention": config.attention.value,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    cleaned: dict[str, Any] = lineage.without_secrets(settings)
    return cleaned


def _sources(config: SampleConfig, records: int) -> tuple[lineage.Source, list[lineage.Parent]]:
    """The file of prompts as a source, and as a parent where it has a record of its own."""
    return source_of(config.dialogue or config.prompts or "", records, "source")


class _Progress:
    """Tells on stderr how far a rank has come."""

    def __init__(self, total: int, there: int, left: int):
        self.left, self.done, self.tokens = left, 0, 0
        self.started = self.told = time.perf_counter()
        if there:
            _log.info(f"{there:,} of {total:,} prompts have their responses already; {total - there:,} are left")

    def add(self, replies: list[Reply]) -> None:
        """One more prompt has its responses."""
        self.done += 1
        self.tokens += sum(reply.tokens for reply in replies)
        now = time.perf_counter()
        if now - self.told >= _TOLD_EVERY or self.done == self.left:
            self.told = now
            speed = self.tokens / (now - self.started)
            _log.info(f"rank 0: {self.done:,} of {self.left:,} prompts, {self.tokens:,} tokens ({speed:,.0f} tokens/s)")


def main(config: SampleConfig) -> None:
    """Samples: the job behind `scripts/sample.py`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        together.join()
    if rank != 0:
        _log.setLevel(logging.WARNING)
    partial = Partial(Path(config.out))
    error: MossTrainError | None = None
    record = lineage.Lineage("data", "sample")
    try:
        prompts = read_prompts(config)
        if rank == 0:
            source, parents = _sources(config, len(prompts))
            model = lineage.parent_of(Path(config.model), "model")
            settings = _settings(config, model, source)
            partial.begin(settings)
            record = lineage_kinds.dialogues("sample", [model, *parents], [source], len(prompts), {"format": "responses", **settings})
    except MossTrainError as caught:
        error = caught
    together.raise_together(error, ranks)
    speaker: Speaker | None = None
    try:
        there = partial.finished()
        mine = [number for number in range(rank, len(prompts), ranks) if number not in there]
        if mine:
            slots = min(config.batch_size, len(mine) * config.samples)
            speaker = Speaker(config, slots, share_prompts=config.samples > 1)
            speaker.check(prompts[number].context for number in mine)
    except torch.OutOfMemoryError as caught:
        error = _explained(caught)
    except MossTrainError as caught:
        error = caught
    # Whatever is wrong with the settings, the model or a prompt is told by all before any of them spends time on the rest.
    together.raise_together(error, ranks)
    progress = _Progress(len(prompts), len(there), len(mine))
    try:
        for number, replies in sample(speaker, prompts, mine, config.samples) if speaker is not None else ():
            line = json.dumps(to_line(prompts[number], replies), ensure_ascii=False) + "\n"
            partial.append(number, line.encode(errors="replace"))
            progress.add(replies)
    except torch.OutOfMemoryError as caught:
        error = _explained(caught)
    except MossTrainError as caught:
        error = caught
    together.raise_together(error, ranks)
    if ranks > 1:
        dist.destroy_process_group()
    if rank == 0:
        partial.merge(len(prompts), record)
        _log.info(f"{len(prompts):,} prompts with {config.samples} responses each -> {config.out}")


def _explained(error: torch.OutOfMemoryError) -> OutOfMemoryError:
    return OutOfMemoryError(f"{str(error).splitlines()[0]} A smaller batch_size or number format takes less.")
