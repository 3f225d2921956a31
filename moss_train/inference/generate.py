"""Answers from a model directory: to one question, to a file of them, to dialogues, or in the terminal.

Under a launcher the ranks share the questions; which rank answers one, and beside which others, does not change the answer.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moss_train import files
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats import parse
from moss_train.data.records import read_records
from moss_train.data.terminal import visible
from moss_train.errors import DataError, MossTrainError, OutOfMemoryError, UsageError
from moss_train.inference import together
from moss_train.inference.config import GenerateConfig, SpeakerConfig
from moss_train.inference.speaker import Speaker, default_system
from moss_train.inference.turns import Reply

_log = logging.getLogger("moss_train")


def questions(config: GenerateConfig) -> list[tuple[str, str]]:
    """The question of `prompt`, or those of the file, each with its origin.

    Raises:
        UsageError: A question is empty.
        DataError: The file cannot be read, or holds none.
    """
    if config.prompt is not None:
        if not config.prompt.strip():
            raise UsageError("prompt is empty; ask something")
        return [("prompt", config.prompt)]
    return [(place, text) for place, text, _ in read_questions(config.prompts or "")]


def read_questions(spec: str) -> list[tuple[str, str, dict[str, Any]]]:
    """The questions of a file: the origin, the question, and the record it stands in, which is empty for a line of text.

    Raises:
        DataError: The file cannot be read, or holds none.
    """
    path = Path(spec)
    found: list[tuple[str, str, dict[str, Any]]] = []
    if path.suffix.lower() in (".txt", ""):
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"prompts={path} cannot be read: {error}") from error
        found = [(f"{path}:{number + 1}", line.strip(), {}) for number, line in enumerate(lines) if line.strip()]
    else:
        for record in read_records(spec):
            value = record.value.get("prompt") if isinstance(record.value, dict) else None
            if not isinstance(value, str) or not value.strip():
                raise DataError(f'{record.origin}: expected an object with a text under "prompt", found {str(record.value)[:80]}')
            found.append((record.origin, value, record.value))
    if not found:
        raise DataError(f"prompts={path} holds no question")
    return found


def dialogues_to_answer(config: GenerateConfig) -> list[Dialogue]:
    """A dialogue of each question, or those of the file."""
    if config.dialogue is not None:
        dialogues = [parse(record.value, record.origin, open_end=True) for record in read_records(config.dialogue)]
        if not dialogues:
            raise DataError(f"{config.dialogue} holds no dialogue")
        return dialogues
    system = system_text(config)
    asked = questions(config)
    return [Dialogue(str(number), system, (Turn(human=f" {text.strip()}"),), origin=place) for number, (place, text) in enumerate(asked)]


def system_text(config: SpeakerConfig) -> str:
    """The meta instruction for questions."""
    text = default_system(Path(config.model), config.writes_thoughts, config.plugins) if config.system is None else config.system
    return text + "\n" if text and not text.endswith("\n") else text


def to_record(dialogue: Dialogue, number: int, reply: Reply) -> dict[str, Any]:
    """A reply as a line of `out`."""
    run = reply.tool_run
    return {
        "index": number,
        "origin": dialogue.origin,
        "prompt": dialogue.turns[-1].human.strip(),
        "reply": reply.moss.strip(),
        "thoughts": reply.thoughts,
        "commands": reply.commands,
        "results": reply.results,
        "finish": "stop" if reply.finished else "length",
        "tokens": reply.tokens,
        "log_probability": reply.log_probability,
        "repaired": reply.repaired,
        "dropped_turns": reply.dropped_turns,
        "citations_beyond": reply.citations_beyond,
        "tool_problems": list(run.problems) if run else [],
    }


def _in_order(replies: Iterator[tuple[int, Reply]], numbers: list[int]) -> Iterator[tuple[int, Reply]]:
    """Replies in the order of their numbers, each as soon as those before it are there."""
    waiting: dict[int, Reply] = {}
    order = iter(numbers)
    wanted = next(order, None)
    for number, reply in replies:
        waiting[number] = reply
        while wanted in waiting:
            yield wanted, waiting.pop(wanted)
            wanted = next(order, None)


def _print(dialogue: Dialogue, reply: Reply, config: GenerateConfig) -> None:
    lines = [] if config.prompt is not None else [f"[{dialogue.origin}] {dialogue.turns[-1].human.strip()}"]
    if config.writes_thoughts and config.show_thoughts:
        lines += [f"Inner Thoughts:{reply.thoughts}", f"Commands:{reply.commands}", f"Results:{reply.results}"]
        lines += [f"(tool: {problem})" for problem in (reply.tool_run.problems if reply.tool_run else ())]
    print("\n".join(visible(line) for line in [*lines, reply.moss.strip()]), flush=True)


def main(config: GenerateConfig) -> None:
    """Answers: the job behind `scripts/generate.py`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if config.chat:
        from moss_train.inference.terminal import chat

        if ranks > 1:
            raise UsageError(f"chat=true with {ranks} ranks: a chat has one; start it with python")
        chat(Speaker(config, 1), system_text(config), show_thoughts=config.show_thoughts)
        return
    if ranks > 1:
        together.join()
    if rank != 0:
        _log.setLevel(logging.WARNING)
    started = time.perf_counter()
    replies: list[tuple[int, Reply]] = []
    error: MossTrainError | None = None
    try:
        # Whatever is wrong with the place for the replies is told before any is written.
        out = _Out(config) if rank == 0 else None
        dialogues = dialogues_to_answer(config)
        mine = list(range(rank, len(dialogues), ranks))
        speaker = Speaker(config, min(config.batch_size, max(1, len(mine))))
        speaker.check(dialogues)
        for number, reply in _in_order(speaker.reply_all((number, dialogues[number]) for number in mine), mine):
            replies.append((number, reply))
            if ranks == 1 and out is not None:
                out.put(dialogues[number], number, reply)
    except torch.OutOfMemoryError as caught:
        error = OutOfMemoryError(f"{str(caught).splitlines()[0]} A smaller batch_size or number format takes less.")
    except MossTrainError as caught:
        error = caught
    if ranks > 1:
        replies = _gather(replies, error, rank, ranks)
    if error is not None:
        raise error
    if out is None:
        return
    if ranks > 1:
        for number, reply in replies:
            out.put(dialogues[number], number, reply)
    out.finish([reply for _, reply in replies], time.perf_counter() - started)


class _Out:
    """Where replies go: to the terminal, or to the file `out`, which has its name when it is complete.

    Raises:
        UsageError: The file exists, or cannot be written.
    """

    def __init__(self, config: GenerateConfig):
        self.config = config
        self.path = Path(config.out) if config.out is not None else None
        if self.path is None:
            return
        if self.path.exists():
            raise UsageError(f"out={self.path} exists; name another file, or remove it")
        # After an interruption it holds what had been written.
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.partial.write_bytes(b"")
        except OSError as error:
            raise UsageError(f"out={self.path} cannot be written: {error.strerror}") from error

    def put(self, dialogue: Dialogue, number: int, reply: Reply) -> None:
        """Takes the next reply."""
        if self.path is None:
            _print(dialogue, reply, self.config)
            return
        line = json.dumps(to_record(dialogue, number, reply), ensure_ascii=False) + "\n"
        with self.partial.open("ab") as file:
            file.write(line.encode(errors="replace"))

    def finish(self, replies: list[Reply], seconds: float) -> None:
        """All replies are there."""
        if self.path is None:
            return
        files.rename(self.partial, self.path)
        tokens = sum(reply.tokens for reply in replies)
        _log.info(f"{len(replies)} replies, {tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s) -> {self.path}")


def _gather(own: list[tuple[int, Reply]], error: MossTrainError | None, rank: int, ranks: int) -> list[tuple[int, Reply]]:
    """The replies of all ranks in order, on rank 0; raises on all of them where one has failed.

    Raises:
        FailedElsewhereError: Another rank has failed.
    """
    together.raise_together(error, ranks)
    every: list[Any] = [None] * ranks
    dist.gather_object(own, every if rank == 0 else None)
    dist.destroy_process_group()
    return sorted((pair for part in every if part for pair in part), key=lambda pair: pair[0])
