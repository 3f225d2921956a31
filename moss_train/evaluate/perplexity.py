"""The suite `perplexity`: loss, perplexity and bits per byte of plain texts, by source and by language.

Every document is read by itself, from `<|endoftext|>` on, in the windows of `likelihood.py`; its end is not predicted. So the sum over a
document is what lm-evaluation-harness calls its rolling log-likelihood. Bits per byte are of the text in UTF-8, and do not depend on the
tokenizer: they are what models with different vocabularies are compared by. Intervals are bootstraps over documents.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from moss_train.errors import DataError
from moss_train.evaluate.bars import Bar, draw_bars
from moss_train.evaluate.config import EvaluateConfig
from moss_train.evaluate.documents import Document, TextSource, find_sources
from moss_train.evaluate.figures import Form, Measure
from moss_train.evaluate.likelihood import Window, rolling_windows, score_windows
from moss_train.evaluate.suite import Outcome, common_settings, describe_counts, make_table, number, open_speaker, problems_of, run_suite
from moss_train.evaluate.suite import label as as_label
from moss_train.inference.speaker import Speaker

_log = logging.getLogger("moss_train")

_TOLD_EVERY = 10.0
"""Seconds between two lines about how far it has come."""
SUITE = "perplexity"


class Tally:
    """Sums by document, which become the figures."""

    def __init__(self) -> None:
        self.measures: dict[str, Measure] = {}
        self.lines: dict[str, dict[str, Any]] = {}
        self.tokens: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.documents: Counter[str] = Counter()

    def add(self, item: str, source: str, document: Document, nats: float, tokens: int) -> None:
        """Adds a document.

        Args:
            item: Its name. source: Of its source. document: What it is. nats: Of all its tokens. tokens: How many these are.
        """
        size = len(document.text.encode(errors="surrogatepass"))
        self.lines[item] = {"origin": document.origin, "language": document.language, "nats": nats, "tokens": tokens, "bytes": size}
        for scope in ("", f"source/{source}", f"language/{document.language}"):
            prefix = f"{SUITE}/{scope}/" if scope else f"{SUITE}/"
            self._measure(f"{prefix}loss", Form.mean, True).add(item, nats, tokens)
            self._measure(f"{prefix}perplexity", Form.exp, True).add(item, nats, tokens)
            self._measure(f"{prefix}bits_per_byte", Form.mean, False).add(item, nats / math.log(2), size)
            self.tokens[scope] += tokens
            self.bytes[scope] += size
            self.documents[scope] += 1

    def _measure(self, name: str, form: Form, by_token: bool) -> Measure:
        return self.measures.setdefault(name, Measure(form, "lower", by_token))

    @property
    def scopes(self) -> list[str]:
        """All texts, then each source, then each language."""
        return sorted(self.tokens, key=lambda scope: ("", "source", "language").index(scope.split("/")[0]))


def evaluate_perplexity(config: EvaluateConfig) -> None:
    """Measures, reports, and writes the evaluation.

    Raises:
        DataError: `data` cannot be read, or holds no text.
        CheckpointError: The model cannot be loaded.
        NonFiniteError: A loss is not a finite number.
        UsageError: `out` cannot be written.
    """
    sources = find_sources(config.data)

    def measure() -> tuple[Outcome, Sequence[Any]]:
        started = time.perf_counter()
        speaker = open_speaker(config, tag="none", batch_size=1)
        tally, left_out = measure_texts(speaker, sources, config)
        _log.info(f"{len(tally.lines):,} documents, {tally.tokens['']:,} tokens in {time.perf_counter() - started:.1f} s")
        recorded = [source.recorded() for source in sources]
        settings = {
            **common_settings(speaker),
            "stride": min(config.stride or speaker.model.config.n_positions, speaker.model.config.n_positions),
            "text_key": config.text_key,
        }
        counts = {
            scope or "all": {name: getattr(tally, name)[scope] for name in ("documents", "tokens", "bytes")} for scope in tally.scopes
        }
        outcome = Outcome(
            SUITE,
            tally.measures,
            settings,
            {"counts": counts, "left_out": dict(left_out)},
            tally.lines,
            [source for source, _ in recorded],
            [parent for _, parents in recorded for parent in parents],
            {"perplexity.png": _picture(tally, config.seed)},
        )
        shown = [_table(tally, config.seed)]
        return outcome, shown + ([f"left out: {describe_counts(left_out)}"] if left_out else [])

    run_suite(config, measure)


def measure_texts(speaker: Speaker, sources: Sequence[TextSource], config: EvaluateConfig) -> tuple[Tally, Counter[str]]:
    """The sums of all documents, and how many were left out.

    Args:
        speaker: The model. sources: What to read. config: `stride`, `batch_tokens`, `text_key`, `on_bad`.

    Raises:
        DataError: Nothing is left, or there are bad records.
    """
    problems, left_out, tally = problems_of(config), Counter[str](), Tally()
    waiting: list[tuple[str, str, Document, int, int]] = []

    def windows() -> Iterator[Window]:
        for source in sources:
            for document in source.read(config.text_key, problems, left_out):
                ids = speaker.tokenizer.encode(document.text)
                found = list(rolling_windows(ids, speaker.tokenizer.endoftext, speaker.model.config.n_positions, config.stride))
                waiting.append((f"{source.name}:{source.documents}", source.name, document, len(ids), len(found)))
                yield from found

    told = time.perf_counter()
    nats, seen = 0.0, 0
    for losses in score_windows(speaker, windows(), config.batch_tokens):
        nats, seen = nats + math.fsum(losses.nats), seen + 1
        item, name, document, tokens, count = waiting[0]
        if seen == count:
            tally.add(item, name, document, nats, tokens)
            waiting.pop(0)
            nats, seen = 0.0, 0
        if time.perf_counter() - told >= _TOLD_EVERY:
            told = time.perf_counter()
            _log.info(f"{len(tally.lines):,} documents, {tally.tokens['']:,} tokens")
    problems.finish(len(tally.lines))
    if not tally.lines:
        raise DataError(f"data={config.data}: holds no text; expected at least one document that is not empty")
    return tally, left_out + problems.counts


def _table(tally: Tally, seed: int) -> Any:
    headings = ("", "documents", "tokens", "loss", "perplexity", "95 %", "bits per byte", "95 %")
    table = make_table("nats per token, perplexity, and bits per byte of text", headings)
    for scope in tally.scopes:
        prefix = f"{SUITE}/{scope}/" if scope else f"{SUITE}/"
        loss, _ = number(tally.measures[f"{prefix}loss"], seed)
        perplexity = number(tally.measures[f"{prefix}perplexity"], seed, ".2f")
        bits = number(tally.measures[f"{prefix}bits_per_byte"], seed)
        counted = (f"{tally.documents[scope]:,}", f"{tally.tokens[scope]:,}")
        table.add_row(as_label(scope.replace("/", " ", 1) or "all texts"), *counted, loss, *perplexity, *bits)
    return table


def _picture(tally: Tally, seed: int) -> bytes:
    bars = [
        Bar(scope.replace("/", " ", 1) or "all texts", tally.measures[f"{SUITE}/{scope}/bits_per_byte".replace("//", "/")].describe(seed))
        for scope in tally.scopes
    ]
    return draw_bars("bits per byte of text, lower is better", bars)
