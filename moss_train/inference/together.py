"""Ranks that share a file of questions: each writes its own part, and all of them end alike."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

from moss_train.errors import FailedElsewhereError, MossTrainError

_TIMEOUT = timedelta(hours=24)
"""A rank may have this much less to write than another."""


def join() -> None:
    """Joins the other ranks that a launcher has started."""
    dist.init_process_group("gloo", timeout=_TIMEOUT)


def raise_together(error: MossTrainError | None, ranks: int) -> None:
    """Waits for all ranks; where one has failed, leaves their group and raises on every one of them.

    Args:
        error: What has gone wrong on this rank, or None.
        ranks: How many there are; one does not wait.

    Raises:
        MossTrainError: `error`.
        FailedElsewhereError: Another rank has failed.
    """
    failures: list[Any] = [None if error is None else (str(error), error.exit_code)] * ranks
    if ranks > 1:
        dist.all_gather_object(failures, failures[0])
    failed = next((number for number, failure in enumerate(failures) if failure is not None), None)
    if failed is None:
        return
    if ranks > 1:
        dist.destroy_process_group()
    raise error if error is not None else FailedElsewhereError(f"rank {failed}: {failures[failed][0]}", failures[failed][1])
