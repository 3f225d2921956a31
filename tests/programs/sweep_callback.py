"""A Hydra callback that writes down what each job of a sweep returned, as a sweeper would see it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback


class WriteReturns(Callback):
    """Appends each job's return value to `path`, one line a job, from rank 0."""

    def __init__(self, path: str):
        self.path = Path(path)

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Called by Hydra after each job."""
        if os.environ.get("RANK", "0") == "0":
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(job_return.return_value) + "\n")
