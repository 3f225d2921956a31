"""The last job of a preparation on Slurm."""

from __future__ import annotations

import atexit
import shutil
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from moss_train.data.prepare.finish import finish
from moss_train.data.prepare.plan import WORK


class FinishCorpus(PipelineStep):
    """Puts a corpus together.

    Args:
        out: The corpus; all its tasks are complete.
    """

    type, name = "FINISH", "corpus"

    def __init__(self, out: Path):
        super().__init__()
        self._out = out

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes what describes the corpus."""
        finish(self._out)
        # datatrove marks this task as complete afterwards, in a folder that is then needed no more.
        atexit.register(shutil.rmtree, self._out / WORK, ignore_errors=True)
