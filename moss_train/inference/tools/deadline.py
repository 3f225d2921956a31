"""Running several things at once until a common deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from moss_train.inference.tools.failure import ToolFailure

Result = TypeVar("Result")


def run_together(jobs: Sequence[Callable[[], Result]], seconds: float) -> list[Result | Exception]:
    """Results in the order of the jobs; in place of one that failed its exception, of one that is not done in time a ToolFailure.

    A job that is late goes on in a daemon thread, which does not keep the program from ending; its result is dropped.
    """
    results: list[Result | Exception] = [ToolFailure(f"not done within {seconds:g} seconds") for _ in jobs]
    kept = list(results)

    def work(place: int) -> None:
        try:
            results[place] = jobs[place]()
        except Exception as error:
            # Whatever goes wrong in a tool must not end the chat.
            results[place] = error

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(len(jobs))]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for place, thread in enumerate(threads):
        thread.join(max(0.0, end - time.monotonic()))
        if not thread.is_alive():
            kept[place] = results[place]
    return kept
