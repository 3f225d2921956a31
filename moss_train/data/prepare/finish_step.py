"""The last job of a preparation on Slurm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from moss_train.data.prepare.finish import finish


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
