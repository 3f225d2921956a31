"""Answers from a model directory: the prompt is built with the same table that training rows are, one turn after another.

A reply is generated up to `<eom>`. Openings are written here, never by the model, since training puts no loss on them. With `thoughts` the
model first writes `Inner Thoughts` up to `<eot>` and `Commands` up to `<eoc>`.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moss_train.artifacts import lineage, lineage_verify
from moss_train.config import Plugin
from moss_train.data.dialogue import KIND_BY_NAME, Dialogue, Turn, meta_instruction
from moss_train.data.formats import parse
from moss_train.data.records import read_records
from moss_train.data.render import render_prompt
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, UsageError
from moss_train.inference.config import GenerateConfig
from moss_train.model.attention import resolve_backend
from moss_train.model.codegen import CodeGenLM, set_attention
from moss_train.model.loading import load_model


def load(config: GenerateConfig) -> tuple[CodeGenLM, MossTokenizer, torch.device]:
    """The model, ready to generate on the GPU where there is one, and its tokenizer."""
    directory = Path(config.model)
    say = logging.getLogger("moss_train").debug
    lineage_verify.require(directory, "model", "remove its lineage.json; its history is lost with it", say, reads=False)
    dtypes: dict[str, Any] = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    model = load_model(directory, dtype=dtypes[config.dtype.value], allow_pickle=config.allow_pickle)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend, _ = resolve_backend(config.attention.value, device, model.dtype, model.config.n_embd // model.config.n_head)
    set_attention(model, backend)
    return model.to(device).eval(), MossTokenizer.load(directory), device


NONE = " None"
"""Content of a segment in which nothing is thought, called or returned, as in the published data."""


def training_details(directory: Path) -> dict[str, Any]:
    """What the lineage of a model tells of the rows it was trained on; empty for a directory made elsewhere."""
    details: dict[str, Any] = (lineage.read(directory) or {}).get("details") or {}
    return details


class Generator:
    """Writes the segments of a turn.

    Args:
        model: In evaluation mode, on its device.
        tokenizer: That of the model.
        config: Sampling values.
    """

    def __init__(self, model: CodeGenLM, tokenizer: MossTokenizer, config: GenerateConfig):
        self.model, self.tokenizer, self.config = model, tokenizer, config
        # A turn should look like those trained on. Without a lineage it is the form published for the plain model: no middle segments.
        self.middle_segments = bool(training_details(Path(config.model)).get("middle_segments"))

    def reply(self, dialogue: Dialogue) -> Turn:
        """The last turn of `dialogue`, whose human part is given, with what the model writes in it."""
        turn = replace(dialogue.turns[-1], thoughts=None, commands=None, results=None, moss=None)
        if self.middle_segments and not self.config.thoughts:
            turn = replace(turn, thoughts=NONE, commands=NONE, results=NONE)
        if self.config.thoughts:
            turn = self._write(dialogue, turn, "thoughts")
            turn = self._write(dialogue, turn, "commands")
            turn = replace(turn, results=NONE)
        return self._write(dialogue, turn, "moss")

    def _write(self, dialogue: Dialogue, turn: Turn, segment: str) -> Turn:
        """`turn` with the content of one more segment, generated up to its terminator."""
        so_far = replace(dialogue, turns=(*dialogue.turns[:-1], turn))
        ids = render_prompt(so_far, self.tokenizer, segment)
        end = self.tokenizer.control_ids[KIND_BY_NAME[segment].control]
        room = self.model.config.n_positions - len(ids)
        if room < 1:
            raise UsageError(f"the prompt has {len(ids)} tokens, the model covers {self.model.config.n_positions}; shorten the dialogue")
        new = self._generate(ids, end, min(room, self.config.max_new_tokens))
        content: dict[str, Any] = {segment: self.tokenizer.decode(new)}
        return replace(turn, **content)

    def _generate(self, ids: list[int], end: int, max_new_tokens: int) -> list[int]:
        """Ids up to, and without, `end`."""
        config = self.config
        sampling: dict[str, Any] = {"do_sample": False}
        if config.temperature > 0:
            sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
        # No control or tag but the terminator of this segment may be written; an id beyond the tokenizer has no text.
        tokenizer = self.tokenizer
        forbidden = sorted((tokenizer.special_ids | set(range(tokenizer.size, self.model.config.vocab_size))) - {end})
        inputs = torch.tensor([ids], device=self.model.device)
        torch.manual_seed(config.seed)
        with torch.inference_mode():
            output = self.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=max_new_tokens,
                eos_token_id=end,
                pad_token_id=tokenizer.endoftext,
                repetition_penalty=config.repetition_penalty,
                suppress_tokens=forbidden,
                **sampling,
            )
        new: list[int] = output[0, len(ids) :].tolist()
        return new[: new.index(end)] if end in new else new


def default_system(directory: Path, thoughts: bool, plugins: list[Plugin]) -> str:
    """The meta instruction of a prompt that names none.

    With plugins: MOSS's, with their switches on. Else the one the model was trained with most, as its lineage tells, or MOSS's.
    """
    if plugins:
        return meta_instruction(**({plugin.value: True for plugin in plugins} | ({"inner_thoughts": True} if thoughts else {})))
    text: str = training_details(directory).get("meta_instruction") or meta_instruction()
    return text.replace("- Inner thoughts: disabled.", "- Inner thoughts: enabled.") if thoughts else text


def dialogues_to_answer(config: GenerateConfig) -> list[Dialogue]:
    """One dialogue made of the prompt, or those of the file."""
    if config.prompt is not None:
        if not config.prompt.strip():
            raise UsageError("prompt is empty; ask something")
        system = default_system(Path(config.model), config.thoughts, config.plugins) if config.system is None else config.system
        if system and not system.endswith("\n"):
            system += "\n"
        return [Dialogue(id="prompt", meta_instruction=system, turns=(Turn(human=f" {config.prompt.strip()}"),), origin="prompt")]
    dialogues = [parse(record.value, record.origin, open_end=True) for record in read_records(config.dialogue or "")]
    if not dialogues:
        raise DataError(f"{config.dialogue} holds no dialogue")
    return dialogues


def main(config: GenerateConfig) -> None:
    """Prints a reply for the prompt, or for the last turn of each dialogue: the job behind `scripts/generate.py`."""
    dialogues = dialogues_to_answer(config)
    model, tokenizer, _ = load(config)
    generator = Generator(model, tokenizer, config)
    for dialogue in dialogues:
        turn = generator.reply(dialogue)
        if len(dialogues) > 1 or config.dialogue is not None:
            print(f"[{dialogue.origin}] {turn.human.strip() if turn.human else ''}")
        if config.thoughts:
            print(f"Inner Thoughts:{turn.thoughts}\nCommands:{turn.commands}")
        print((turn.moss or "").strip())
        sys.stdout.flush()
