"""From corpora to the mixture that is trained on, what is held out of it, and what the loop takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss_train.artifacts import lineage
from moss_train.data.corpus import CorpusSource, open_corpus, shard_paths
from moss_train.data.loader import Batch, EvaluationBatches, StepPlan, step_batches
from moss_train.data.mixture import BLOCK, Mixture, Phase
from moss_train.data.terminal import count
from moss_train.data.tokenizer import MossTokenizer
from moss_train.data.windows import HeldOut, SourceWindows, count_windows, source_identity, token_bytes
from moss_train.errors import ConfigError, DataError, ResumeError
from moss_train.pretrain.config import CorpusDataConfig, PretrainConfig, WeighBy
from moss_train.pretrain.inputs import weights_by_path
from moss_train.pretrain.weights import Entry, objective_weights, token_shares
from moss_train.train import engine as distributed
from moss_train.train.stage import Length, StageData
from moss_train.train.start import Say


@dataclass
class Windows:
    """What a run trains and evaluates on.

    Attributes:
        mixture: Of the sources that have a weight. entries: Those sources, in its order.
        valid: Windows to evaluate on. groups: Name in the metrics -> numbers of the sources whose losses it sums.
        details: For the lineage.
    """

    mixture: Mixture
    entries: list[Entry]
    all_entries: list[Entry]
    valid: HeldOut | None
    groups: dict[str, list[int]]
    config: PretrainConfig
    tokenizer: MossTokenizer
    epoch_rows: int
    details: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of both splits: the same on every rank."""
        return f"{self.mixture.fingerprint} {self.valid.fingerprint if self.valid else None}"

    def stage_data(self) -> StageData:
        """What the loop takes."""
        train, world_size, rank = self.config.train, distributed.world_size(), distributed.rank()
        plan = StepPlan(train.global_batch_size, train.micro_batch_size, world_size)
        valid = {}
        if self.valid is not None:
            valid["valid"] = EvaluationBatches(self.valid, train.micro_batch_size, world_size, rank, by_source=True)

        def make(first: int, last: int) -> Sequence[Batch]:
            return step_batches(self.mixture, first, plan, rank, last, by_source=True)

        return StageData(
            rows=self.epoch_rows,
            batches=StepsAhead(make, train.global_batch_size),
            valid=valid,
            sources=[
                lineage.Source(one.name, source_identity(one.corpus, one.source), one.source.documents, one.role, one.source.licence)
                for one in self.all_entries
            ],
            weight_name="trained_tokens",
            tokens_per_sample=self.config.data.seq_len,
            mean_context=self.mixture.mean_context,
            fingerprint=self.mixture.fingerprint,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            write_tokenizer=self.tokenizer.save,
            origins=self.mixture.origins_of_sample,
            position=self.mixture.position,
            changes=self.mixture.changes,
            details={**self.details, "mixtures": self.mixture.history},
        )

    def parents(self) -> list[lineage.Parent]:
        """The corpora, as parents of what is trained."""
        directories = dict.fromkeys(one.corpus.directory for one in self.all_entries)
        return [parent for directory in directories for parent in lineage.recorded_parent(directory, "data")]


class StepsAhead:
    """The batches of a step, and those of the next one made meanwhile by a thread: disks answer while the model computes.

    Args:
        make: (first sample of a step, samples of the run) -> batches.
        samples_per_step: From one step to the next.
    """

    def __init__(self, make: Callable[[int, int], Sequence[Batch]], samples_per_step: int):
        self._make, self._stride = make, samples_per_step
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[tuple[int, int], Future[Sequence[Batch]]] | None = None

    def __call__(self, first: int, last: int) -> Sequence[Batch]:
        asked, self._next = self._next, None
        batches = asked[1].result() if asked is not None and asked[0] == (first, last) else self._make(first, last)
        if first + self._stride < last:
            following = (first + self._stride, last)
            self._next = (following, self._pool.submit(self._make, *following))
        return batches


def open_entries(found: Mapping[str, Any], tokenizer: MossTokenizer) -> list[Entry]:
    """The sources of all corpora, their shards there and of the recorded size.

    Raises:
        DataError: A corpus is missing, malformed, or of another tokenizer; a shard has gone.
    """
    opened = [(role, path, open_corpus(directory, tokenizer.fingerprint)) for role in ("train", "valid") for path, directory in found[role]]
    entries = []
    for role in ("train", "valid"):
        mine = [(path, corpus) for one, path, corpus in opened if one == role]
        names = Counter(name for _, corpus in mine for name in corpus.sources)
        for path, corpus in mine:
            for name, source in corpus.sources.items():
                unique = name if names[name] == 1 else f"{Path(path).name}/{name}"
                entries.append(Entry(unique, path, role, corpus, source))
                _require_shards(source)
        twice = [name for name, number in Counter(one.name for one in entries if one.role == role).items() if number > 1]
        if twice:
            raise DataError(f"data.{role}: two sources are called {twice[0]}; give their corpora directories of different names")
    return entries


def _require_shards(source: CorpusSource) -> None:
    """Every shard's tokens are there: found now, not after a day."""
    for shard in source.shards:
        path = shard_paths(shard.directory, shard.source, shard.name)["tokens"]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}, although the corpus names it; copy or prepare the corpus again.") from None
        if size < 4 * shard.tokens:
            raise DataError(
                f"{path}: has {size} bytes; expected more than {4 * shard.tokens} for {shard.tokens} tokens: the file is cut. "
                "Copy or prepare the corpus again."
            )


def open_windows(config: PretrainConfig, found: Mapping[str, Any], tokenizer: MossTokenizer, say: Say) -> Windows:
    """The mixture and the held-out windows; says what is mixed.

    Raises:
        DataError: What is wrong with a corpus. ConfigError: What is wrong with the weights.
    """
    data, seed = config.data, config.run.seed
    entries = open_entries(found, tokenizer)
    train = [one for one in entries if one.role == "train"]
    bytes_of = token_bytes(tokenizer)
    of_paths = weights_by_path(data.train)
    stretches: list[tuple[float | None, Mapping[str, float], str]] = [(None, data.weights, "data.weights")]
    if of_paths:
        stretches = [(None, of_paths, "data.train")]
    elif data.phases:
        stretches = [(phase.tokens, phase.weights, f"data.phases[{number}].weights") for number, phase in enumerate(data.phases)]
    shares = [token_shares(train, given, data.weigh_by, key, bool(of_paths)) for _, given, key in stretches]
    used = [place for place in range(len(train)) if any(of_phase[place] for of_phase in shares)]
    left_out = [train[place].name for place in range(len(train)) if place not in used]
    if left_out:
        say(f"not in the mixture, since it has no weight: {', '.join(left_out)}")
    if len(used) > BLOCK:
        raise ConfigError([f"data.train has {len(used)} sources; a mixture takes {BLOCK} at most. Prepare small ones together"])
    mixed = [train[place] for place in used]
    parts, held = [], []
    for one in mixed:
        total = count_windows(one.source.tokens, data.seq_len)
        apart = 0 if found["valid"] or not data.holdout else max(1, round(data.holdout * total))
        if apart >= total:
            raise DataError(
                f"{one.corpus.directory}: {one.name} has {count(total, 'window')} of data.seq_len={data.seq_len}, too few to keep "
                f"data.holdout={data.holdout} apart; name data.valid instead, or lower data.seq_len"
            )
        parts.append(SourceWindows(one.corpus, one.source, data.seq_len, seed, bytes_of, (0, total - apart)))
        if apart:
            held.append((one, SourceWindows(one.corpus, one.source, data.seq_len, seed, bytes_of, (total - apart, total))))
    trained_on = {source_identity(one.corpus, one.source) for one in mixed}
    for one in entries:
        if one.role == "valid":
            if source_identity(one.corpus, one.source) in trained_on:
                say(f"WARNING: {one.name} of data.valid is trained on too; what is measured on it is not held out")
            held.append((one, SourceWindows(one.corpus, one.source, data.seq_len, seed, bytes_of)))
    scales = [1.0] * len(used)
    if data.weigh_by is WeighBy.epochs and (data.weights or of_paths or data.phases):
        # Passes over the windows that are trained on, without what is held out: so many rows of each.
        scales = [len(rows) / one.source.tokens for one, rows in zip(mixed, parts)]
    phases = [
        Phase(
            None if tokens is None else max(1, round(tokens / data.seq_len)),
            tuple(of_phase[place] * scale for place, scale in zip(used, scales)),
        )
        for (tokens, _, _), of_phase in zip(stretches, shares)
    ]
    mixture = Mixture(parts, phases, [one.name for one in mixed], objective_weights(mixed, data.loss_weights))
    numbers, groups = number_sources(mixed, [one for one, _ in held])
    valid = HeldOut([rows for _, rows in held], numbers, data.valid_tokens) if held else None
    rows = len(mixture)
    if data.weigh_by is WeighBy.epochs and len(phases) == 1 and (data.weights or of_paths):
        # One epoch is what the weights say: so many passes over each source.
        rows = max(1, round(sum(phases[0].weights)))
    details = {"seq_len": data.seq_len, "rows_fingerprint": mixture.fingerprint, "tokenizer_fingerprint": tokenizer.fingerprint}
    shown = [*mixed, *(one for one in entries if one.role == "valid")]
    return Windows(mixture, mixed, shown, valid, groups, config, tokenizer, rows, details)


def number_sources(train: Sequence[Entry], valid: Sequence[Entry]) -> tuple[list[int], dict[str, list[int]]]:
    """Numbers of the sources that are evaluated on, and what metrics are told apart.

    A held-out source has the number of the training source of its name and language, or one after those. Each language is a group; so is
    each source where a language has several.
    """
    known = {(one.language, one.name): number for number, one in enumerate(train)}
    numbers = [known.setdefault((one.language, one.name), len(known)) for one in valid]
    groups: dict[str, list[int]] = {}
    for (language, _), number in known.items():
        groups.setdefault(language, []).append(number)
    for (language, name), number in known.items():
        if len(groups[language]) > 1:
            groups[f"{language}/{name}"] = [number]
    return numbers, groups


def check_passes(windows: Windows, config: CorpusDataConfig, length: Length, say: Say) -> None:
    """Says what the run takes of each source, and refuses more passes over one than are allowed.

    Raises:
        ConfigError: With the sources, how often the run would go through each, and what would fit.
    """
    mixture = windows.mixture
    taken = mixture.taken(length.samples)
    problems, lines = [], []
    for place, (one, samples) in enumerate(zip(windows.entries, taken)):
        passes = samples / len(mixture.sources[place])
        parts = [f"{counts[place] / BLOCK:.2%}" for _, counts in mixture.phases]
        objective = f", a token counts {mixture.objectives[place]:g}" if mixture.objectives[place] != 1 else ""
        lines.append(
            f"  {one.name} ({one.language}): {mixture.sources[place].tokens:,} tokens, {one.source.documents:,} documents, "
            f"share {' then '.join(parts)}, {passes:.2f} passes{objective}"
        )
        if config.max_epochs is not None and passes > config.max_epochs + 1e-9:
            share = config.max_epochs * len(mixture.sources[place]) / length.samples
            most = f"give it at most {_floor(share)} of the tokens"
            if share < 1 / BLOCK:
                most = f"leave it out or prepare it together with another, since a source has one sample in {BLOCK:,} at least"
            problems.append(
                f"data.max_epochs={config.max_epochs:g}: the run would go through {one.name} {passes:.1f} times "
                f"({samples * config.seq_len:,} tokens, of which it has {mixture.sources[place].tokens:,}); {most}, "
                f"shorten the run, add data, or allow it with data.max_epochs={math.ceil(passes)}"
            )
    say("the mixture, by source:\n" + "\n".join(lines))
    if windows.valid is not None:
        say(f"held out: {len(windows.valid):,} windows of {config.seq_len} tokens")
    if problems:
        raise ConfigError(problems)


def _floor(share: float) -> str:
    return f"{math.floor(share * 1000) / 10:g}%"


def go_on(windows: Windows, samples: int, position: Mapping[str, Any], say: Say) -> None:
    """Continues a run where a checkpoint left it, in this mixture or another.

    Raises:
        ResumeError: A source has other windows than it had under its name, or another order: they could not be gone on with.
    """
    mixture = windows.mixture
    if position.get("seed", mixture.seed) != mixture.seed:
        raise ResumeError(
            f"run.seed was {position['seed']}, is now {mixture.seed}: in another order windows of the epochs that have begun would be "
            "trained on again, and others left out. Restore it"
        )
    renewed = mixture.renewed(position)
    if renewed:
        raise ResumeError(
            f"the windows of {', '.join(renewed)} are not those that the run has taken so far (its tokens, data.seq_len, data.holdout or "
            "data.valid have changed), so what was trained on would be trained on again. Restore them; or add new data as a source of "
            "another name"
        )
    mixture.go_on(samples, position)
    if len(mixture.history) > 1 and mixture.history[-1]["from_sample"] == samples:
        before, now = mixture.history[-2:]
        say(f"the mixture changes at sample {samples}: {_spelled(before)} -> {_spelled(now)}; every source goes on where it was")


def _spelled(described: Mapping[str, Any]) -> str:
    return " then ".join(", ".join(f"{name} {share:.2%}" for name, share in phase["shares"].items()) for phase in described["phases"])
