"""A model of this project as lm-evaluation-harness asks for one. Importing this module needs the harness.

Texts become ids as in training: no text can spell a control token, and `<|endoftext|>` stands before a text without a context.
Likelihoods are those of `likelihood.py`, so that the harness and `suite=perplexity` cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM

from moss_train.errors import UsageError
from moss_train.evaluate.likelihood import Window, rolling_windows, score_windows
from moss_train.inference.decoder import Task, Write
from moss_train.inference.speaker import Speaker

_PIECE = 32
"""Ids that are written before it is looked for a text that ends them."""


class SpeakerLM(TemplateLM):
    """Answers the three kinds of requests with a loaded model.

    Args:
        speaker: The model. Its sampling takes the likeliest token each time.
        batch_tokens: At once, where likelihoods are computed.
    """

    def __init__(self, speaker: Speaker, batch_tokens: int):
        super().__init__()
        self.speaker, self.batch_tokens = speaker, batch_tokens
        self.positions = int(speaker.model.config.n_positions)
        self.shortened = 0
        """Requests that were longer than the model, and lost ids from their beginning."""

    @property
    def eot_token_id(self) -> int:
        """Before a text that has nothing before it."""
        return self.speaker.tokenizer.endoftext

    @property
    def tokenizer_name(self) -> str:
        """For caches."""
        return self.speaker.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; nothing is added."""
        return self.speaker.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether each of its tokens is the likeliest one."""
        windows = []
        for _, context, continuation in requests:
            ids = [*context, *continuation]
            self.shortened += len(ids) - 1 > self.positions
            # Of what is too long the beginning goes.
            windows.append(Window(ids[:-1][-self.positions :], continuation[-self.positions :]))
        return [(-math.fsum(one.nats), bool(one.likeliest.all())) for one in score_windows(self.speaker, windows, self.batch_tokens)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts."""
        windows: list[Window] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            found = list(rolling_windows(self.tok_encode(request.args[0]), self.eot_token_id, self.positions))
            windows += found
            owners += [number] * len(found)
        sums: list[list[float]] = [[] for _ in requests]
        for owner, losses in zip(owners, score_windows(self.speaker, windows, self.batch_tokens), strict=True):
            sums[owner].extend(losses.nats)
        return [-math.fsum(one) for one in sums]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, the likeliest token each time, up to a text that ends it.

        Raises:
            UsageError: A task asks for sampling.
        """
        texts = [""] * len(requests)
        tasks = ((number, self._write(number, *request.args)) for number, request in enumerate(requests))
        for number, text in self.speaker.decoder.run(tasks):
            texts[number] = text
        return texts

    def _write(self, number: int, context: str, settings: dict[str, Any]) -> Task[str]:
        if settings.get("do_sample") and float(settings.get("temperature", 1.0)) > 0:
            raise UsageError(
                "a task asks for sampled answers (do_sample); this suite takes the likeliest token each time: leave the task out"
            )
        until = settings.get("until") or []
        ends = [one for one in ([until] if isinstance(until, str) else until) if one]
        most = min(int(settings.get("max_gen_toks", self.speaker.config.max_new_tokens)), self.positions - 1)
        prompt = [self.eot_token_id, *self.tok_encode(context)]
        self.shortened += len(prompt) > self.positions - most
        prompt = prompt[-(self.positions - most) :]
        written: list[int] = []
        text = ""
        while len(written) < most:
            piece = yield Write(prompt + written, min(_PIECE, most - len(written)), f"{number}:{len(written)}")
            written += piece.ids
            text = self.speaker.tokenizer.decode(written)
            found = [place for place in (text.find(one) for one in ends) if place >= 0]
            if found:
                return text[: min(found)]
            if piece.stop is not None:
                break
        return text
