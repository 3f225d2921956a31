"""What `data.train` and `data.valid` name: files, what they hold, and a tokenizer where none is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moss_train.data import formats, inputs
from moss_train.data.cache import Cache, default_directory
from moss_train.data.dialogue import spelled_segments
from moss_train.data.inputs import Input, Say
from moss_train.sft.config import DialogueDataConfig

__all__ = ["Input", "find_inputs", "open_cache", "train_tokenizer"]

_BUNDLED = ("dialogues_train.jsonl", "dialogues_dev.jsonl")


def open_cache(config: DialogueDataConfig) -> Cache:
    """The cache of `data.cache`."""
    return Cache(Path(config.cache) if config.cache else default_directory())


def find_inputs(config: DialogueDataConfig) -> list[Input]:
    """What `data.train` and `data.valid` name, or the bundled dialogues.

    Raises:
        DataError: A path is missing or holds nothing readable.
    """
    return inputs.find_inputs(config.train, config.valid, open_cache(config), _BUNDLED)


def train_tokenizer(config: DialogueDataConfig, found: Sequence[Input], vocab_size: int, say: Say) -> str:
    """The directory of a small tokenizer trained on the training dialogues, kept in the cache."""

    def texts_of(value: Any, origin: str) -> list[str]:
        dialogue = formats.parse(value, origin, config.format.value)
        return [dialogue.meta_instruction, *(segment for turn in dialogue.turns for segment in spelled_segments(turn))]

    key = [config.format.value]
    return inputs.train_tokenizer(found, texts_of, vocab_size, open_cache(config), say, stage="sft", what="dialogues", key=key)
