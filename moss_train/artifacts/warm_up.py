"""Training the new rows of an extended vocabulary alone, before the model trains as a whole.

For a few hundred steps on one device: everything but the new rows stays to the bit what it was, so what the model knew is not touched while
the rows find their place. A whole training belongs to a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from moss_train.artifacts.config import WarmUpConfig
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import NonFiniteError
from moss_train.model.codegen import CodeGenLM
from moss_train.model.vocab import BIAS, INPUT, OUTPUT, RowPlan

TOLD_EVERY = 20


def warm_up(
    model: CodeGenLM,
    plan: RowPlan,
    tokenizer: MossTokenizer,
    texts: Iterator[str],
    config: WarmUpConfig,
    device: torch.device,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Adam without weight decay on the new rows, next token on packed rows of text, the learning rate falling linearly to zero.

    Args:
        model: Changed in place: rows of `plan.learned` and of new controls, in the three vocabulary-sized parameters.
        plan: Tells new rows from old ones.
        tokenizer: The extended one.
        texts: Endless.
        config: Steps, learning rate, rows of a step and their length.
        device: Where it runs.
        say: Progress.

    Returns:
        Steps, and the mean loss in nats per token of the first and the last tenth of them.

    Raises:
        NonFiniteError: The loss is not finite; nothing is written.
    """
    model = model.to(device).train()
    new = ((plan.old_rows < 0) & (torch.arange(len(plan.old_rows)) < plan.used)).to(device)
    named = dict(model.named_parameters())
    trained = [named[name] for name in (INPUT, OUTPUT, BIAS)]
    for parameter in named.values():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
        # A gradient of zero leaves Adam's state, and with it the row, at zero change.
        parameter.register_hook(lambda gradient: torch.where(new if gradient.dim() == 1 else new.unsqueeze(1), gradient, 0))
    optimizer = torch.optim.Adam(trained, lr=config.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / config.steps)
    seq_len = min(config.seq_len, model.config.n_positions)
    rows = _rows(texts, tokenizer, seq_len + 1)
    losses: list[float] = []
    for step in range(config.steps):
        batch = torch.tensor([next(rows) for _ in range(config.rows)], device=device)
        out = model(batch[:, :-1], targets=batch[:, 1:].clone())
        loss = out.loss_sum / batch[:, 1:].numel()
        if not bool(loss.isfinite()):
            raise NonFiniteError(f"warm-up: the loss is {float(loss)} at step {step + 1}; lower warmup.lr={config.lr:g}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % TOLD_EVERY == 0:
            say(f"warm-up {step + 1}/{config.steps} | loss {losses[-1]:.4f}")
    tenth = max(1, len(losses) // 10)
    return {"steps": config.steps, "loss_first": sum(losses[:tenth]) / tenth, "loss_last": sum(losses[-tenth:]) / tenth}


def _rows(texts: Iterator[str], tokenizer: MossTokenizer, length: int) -> Iterator[list[int]]:
    """Rows of ids, texts one after another with `<|endoftext|>` between them."""
    stream: list[int] = [tokenizer.endoftext]
    for text in texts:
        stream += [*tokenizer.encode(text), tokenizer.endoftext]
        # The last target of a row is the first input of the next.
        ends = range(length, len(stream) + 1, length - 1)
        for end in ends:
            yield stream[end - length : end]
        stream = stream[len(ends) * (length - 1) :]
