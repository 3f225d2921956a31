"""The job behind `scripts/evaluate.py`: one task, each in a module of its own.

A new task is a value of `Task`, its keys in `EvaluateConfig`, a module, and a line here.
"""

from __future__ import annotations

import logging
from pathlib import Path

from moss_train.evaluate.config import EvaluateConfig, Task
from moss_train.evaluate.output import refuse_existing


def main(config: EvaluateConfig) -> None:
    """Runs the task.

    Raises:
        UsageError: `out` exists.
        DataError: What is to be evaluated on is missing or malformed.
        CheckpointError: The model cannot be loaded.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    refuse_existing(Path(config.out))
    match config.chosen:
        case Task.make_probes:
            from moss_train.evaluate.planting import make_probes

            make_probes(config)
        case Task.transfer:
            from moss_train.evaluate.transfer import evaluate_transfer

            evaluate_transfer(config)
        case Task.pm:
            from moss_train.evaluate.preference_suite import evaluate_preferences

            evaluate_preferences(config)
        case Task.control:
            from moss_train.evaluate.control import evaluate_control

            evaluate_control(config)
        case Task.perplexity:
            from moss_train.evaluate.perplexity import evaluate_perplexity

            evaluate_perplexity(config)
        case Task.dialogue:
            from moss_train.evaluate.dialogue_suite import evaluate_dialogues

            evaluate_dialogues(config)
        case Task.plugins:
            from moss_train.evaluate.plugin_suite import evaluate_plugins

            evaluate_plugins(config)
        case Task.hhh:
            from moss_train.evaluate.hhh import evaluate_hhh

            evaluate_hhh(config)
        case Task.harness:
            from moss_train.evaluate.harness import evaluate_harness

            evaluate_harness(config)
