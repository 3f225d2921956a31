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
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from moss_train import files
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats import parse
from moss_train.data.records import read_records
from moss_train.errors import DataError, UsageError
from moss_train.inference.config import GenerateConfig
from moss_train.inference.speaker import Speaker, default_system
from moss_train.inference.turns import Reply

_log = logging.getLogger("moss_train")
_TIMEOUT = timedelta(hours=24)
"""A rank may have this much less to write than another."""


def questions(config: GenerateConfig) -> list[str]:
    """The question of `prompt`, or those of the file.

    Raises:
        UsageError: A question is empty.
        DataError: The file cannot be read, or holds none.
    """
    if config.prompt is not None:
        if not config.prompt.strip():
            raise UsageError("prompt is empty; ask something")
        return [config.prompt]
    path = Path(config.prompts or "")
    if path.suffix.lower() in (".txt", ""):
        try:
            found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"prompts={path} cannot be read: {error}") from error
    else:
        found = []
        for record in read_records(str(path)):
            value = record.value.get("prompt") if isinstance(record.value, dict) else None
            if not isinstance(value, str) or not value.strip():
                raise DataError(f'{record.origin}: expected an object with a text under "prompt", found {str(record.value)[:80]}')
            found.append(value)
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
    name = "prompt" if config.prompts is None else config.prompts
    return [
        Dialogue(str(number), system, (Turn(human=f" {text.strip()}"),), origin=f"{name}:{number + 1}") for number, text in enumerate(asked)
    ]


def system_text(config: GenerateConfig) -> str:
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


def _print(dialogue: Dialogue, reply: Reply, config: GenerateConfig, alone: bool) -> None:
    if not alone:
        print(f"[{dialogue.origin}] {dialogue.turns[-1].human.strip()}")
    if config.writes_thoughts and config.show_thoughts:
        print(f"Inner Thoughts:{reply.thoughts}\nCommands:{reply.commands}\nResults:{reply.results}")
        for problem in reply.tool_run.problems if reply.tool_run else ():
            print(f"(tool: {problem})")
    print(reply.moss.strip(), flush=True)


def main(config: GenerateConfig) -> None:
    """Answers: the job behind `scripts/generate.py`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if config.chat:
        from moss_train.inference.terminal import chat

        chat(Speaker(config, 1), system_text(config))
        return
    out = Path(config.out) if config.out is not None else None
    if out is not None and out.exists():
        raise UsageError(f"out={out} exists; name another file, or remove it")
    dialogues = dialogues_to_answer(config)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    mine = list(range(rank, len(dialogues), ranks))
    if rank != 0:
        _log.setLevel(logging.WARNING)
    speaker = Speaker(config, min(config.batch_size, max(1, len(mine))))
    speaker.check(dialogues)
    started = time.perf_counter()
    replies = _in_order(speaker.reply_all((number, dialogues[number]) for number in mine), mine)
    if ranks == 1 and out is None:
        for number, reply in replies:
            _print(dialogues[number], reply, config, alone=config.prompt is not None)
        return
    found = _gather(list(replies), rank, ranks) if ranks > 1 else list(replies)
    if rank != 0:
        return
    if out is None:
        for number, reply in found:
            _print(dialogues[number], reply, config, alone=config.prompt is not None)
        return
    lines = [json.dumps(to_record(dialogues[number], number, reply), ensure_ascii=False) + "\n" for number, reply in found]
    out.parent.mkdir(parents=True, exist_ok=True)
    files.replace_content(out, "".join(lines).encode(errors="replace"))
    seconds = time.perf_counter() - started
    tokens = sum(reply.tokens for _, reply in found)
    _log.info(f"{len(found)} replies, {tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s) -> {out}")


def _gather(own: list[tuple[int, Reply]], rank: int, ranks: int) -> list[tuple[int, Reply]]:
    """The replies of all ranks in order, on rank 0."""
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    every: list[Any] = [None] * ranks
    dist.gather_object(own, every if rank == 0 else None)
    dist.destroy_process_group()
    return sorted((pair for part in every if part for pair in part), key=lambda pair: pair[0])
