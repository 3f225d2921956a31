"""Dialogue files to the rows of a run.

records -> dialogues -> (a share kept apart for validation) -> ids and loss masks -> packed rows -> batches
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from moss_train.artifacts.lineage import Source
from moss_train.data.dialogue import Dialogue, meta_instruction, read_dialogues
from moss_train.data.loader import RowDataset, StepPlan, evaluation_batches, step_batches
from moss_train.data.mixture import permutation_key, permuted_index
from moss_train.data.render import render_all
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError
from moss_train.sft.config import DefaultMeta, DialogueDataConfig, SFTConfig
from moss_train.train import engine as distributed
from moss_train.train.stage import StageData

Say = Callable[[str], None]

BUNDLED_LICENCE = "Apache-2.0"
# Enough text for a small vocabulary; learning merges from more takes minutes and changes little.
TOKENIZER_TRAINING_CHARACTERS = 20_000_000


@dataclass
class Splits:
    """Dialogues for training and for validation, and where they came from."""

    train: list[Dialogue]
    valid: list[Dialogue]
    sources: list[Source]


@dataclass
class Rows:
    """Packed rows of both splits."""

    train_rows: RowDataset
    valid_rows: RowDataset | None
    config: SFTConfig
    tokenizer: MossTokenizer
    sources: list[Source]
    details: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of both splits: the same on every rank, or ranks would train on different things."""
        return f"{self.train_rows.fingerprint} {self.valid_rows.fingerprint if self.valid_rows else None}"

    @property
    def count(self) -> int:
        """Training rows of one epoch."""
        return len(self.train_rows)

    def stage_data(self) -> StageData:
        """What the loop takes."""
        train = self.config.train
        plan = StepPlan(train.global_batch_size, train.micro_batch_size, distributed.world_size())
        valid = {}
        if self.valid_rows is not None:
            valid["valid"] = list(evaluation_batches(self.valid_rows, train.micro_batch_size, distributed.world_size(), distributed.rank()))
        return StageData(
            rows=self.count,
            # A number of epochs ends in the middle of a step, most often; the rest of it is rows of weight zero.
            batches=lambda first, last: step_batches(self.train_rows, first, plan, distributed.rank(), last),
            valid=valid,
            sources=self.sources,
            weight_name="supervised_tokens",
            mean_context=self.train_rows.mean_context,
            fingerprint=self.train_rows.fingerprint,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            write_tokenizer=self.tokenizer.save,
            origins=self.train_rows.origins_of_sample,
            details=self.details,
        )


def load_dialogues(config: DialogueDataConfig, seed: int, say: Say) -> Splits:
    """Reads and parses what `data.train` and `data.valid` name, or the bundled dialogues.

    Raises:
        DataError: With every bad record, each by file and line, and what to do.
    """
    train_paths, valid_paths, licence = _paths(config.train), _paths(config.valid), None
    if not train_paths:
        folder = resources.files("moss_train.data.bundled")
        train_paths, licence = [str(folder / "dialogues_train.jsonl")], BUNDLED_LICENCE
        valid_paths = valid_paths or [str(folder / "dialogues_dev.jsonl")]
    sources: list[Source] = []
    train = _read(train_paths, "train", config, licence, sources, say)
    valid = _read(valid_paths, "valid", config, licence, sources, say)
    if not valid_paths and config.holdout:
        train, valid = hold_out(train, config.holdout, seed)
        say(f"validation: {len(valid)} of the training dialogues are kept apart (data.holdout={config.holdout})")
    return Splits(train, valid, sources)


def hold_out(dialogues: list[Dialogue], share: float, seed: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """Keeps a share of the dialogues apart: at least one, never all; the same ones for the same seed and number of dialogues."""
    count = min(max(1, round(share * len(dialogues))), len(dialogues) - 1)
    key = permutation_key("holdout", seed, 0)
    chosen = {permuted_index(key, len(dialogues), i) for i in range(count)}
    return [d for i, d in enumerate(dialogues) if i not in chosen], [d for i, d in enumerate(dialogues) if i in chosen]


def texts(dialogues: list[Dialogue]) -> Iterator[str]:
    """Text to train a tokenizer on: every content of the dialogues, up to a bound."""
    left = TOKENIZER_TRAINING_CHARACTERS
    for dialogue in dialogues:
        parts = [dialogue.meta_instruction or ""]
        for turn in dialogue.turns:
            parts += [part for part in (turn.human, turn.thoughts, turn.commands, turn.results, turn.moss) if part]
        yield from parts
        left -= sum(map(len, parts))
        if left < 0:
            return


def prepare(config: SFTConfig, splits: Splits, tokenizer: MossTokenizer, say: Say) -> Rows:
    """Renders and packs both splits, and says what came of it."""
    data = config.data

    def rows(name: str, dialogues: list[Dialogue]) -> tuple[RowDataset, Counter[str]]:
        rendered, counts = render_all(dialogues, tokenizer, data.loss_on.value, data.seq_len, on_marker=data.on_marker.value)
        dropped = Counter({reason: count for reason, count in counts.items() if "dropped" in reason or reason == "dialogues_shortened"})
        if not rendered:
            raise DataError(f"data.{name}: none of {len(dialogues)} dialogues is left at data.seq_len={data.seq_len}: {describe(dropped)}")
        dataset = RowDataset(rendered, data.seq_len, config.run.seed, pad_id=tokenizer.endoftext)
        say(
            f"{name}: {len(rendered):,} of {len(dialogues):,} dialogues in {len(dataset):,} rows of {data.seq_len} "
            f"({dataset.fill:.1%} filled), "
            f"{dataset.tokens:,} tokens, {dataset.supervised_tokens:,} with loss ({data.loss_on.value})"
            + (f"; dropped: {describe(dropped)}" if dropped else "")
        )
        return dataset, dropped

    train, dropped = rows("train", splits.train)
    valid = rows("valid", splits.valid)[0] if splits.valid else None
    meta = Counter(dialogue.meta_instruction for dialogue in splits.train if dialogue.meta_instruction).most_common(1)
    details = {
        "loss_on": data.loss_on.value,
        "seq_len": data.seq_len,
        "rows_fingerprint": train.fingerprint,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "dropped": dict(dropped),
        "meta_instruction": meta[0][0] if meta else None,
        "middle_segments": middle_segments(splits.train),
    }
    return Rows(train, valid, config, tokenizer, splits.sources, details)


def middle_segments(dialogues: list[Dialogue]) -> bool:
    """Whether most turns carry inner thoughts, commands and results, if only as None: a prompt should look like what was trained on."""
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    return 2 * sum(None not in (turn.thoughts, turn.commands, turn.results) for turn in turns) > len(turns)


def describe(counts: Counter[str]) -> str:
    """Counts in words, most frequent first."""
    words = {reason: reason.replace("_dropped", "").replace("_", " ") for reason in counts}
    return ", ".join(f"{count:,} {words[reason]}" for reason, count in counts.most_common()) or "nothing"


def _paths(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _read(paths: list[str], role: str, config: DialogueDataConfig, licence: str | None, sources: list[Source], say: Say) -> list[Dialogue]:
    """The dialogues of `paths`; each path becomes a source, with the hash of the dialogues read from it."""
    found: list[Dialogue] = []
    meta = meta_instruction(**{plugin.value: True for plugin in config.plugins}) if config.default_meta is DefaultMeta.moss else ""
    for path in paths:
        dialogues, problems = read_dialogues(path, default_meta=meta, on_bad=config.on_bad.value)
        if problems.counts:
            say(f"{role}: {sum(problems.counts.values())} bad records left out (data.on_bad=skip)\n{problems.describe()}")
        digest = hashlib.sha256()
        for dialogue in dialogues:
            digest.update(repr((dialogue.id, dialogue.meta_instruction, dialogue.turns)).encode("utf-8"))
        name = path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        sources.append(Source(name, digest.hexdigest(), len(dialogues), role, licence))
        found += dialogues
    return found
