"""Errors that a user can cause or meet, each with the exit code of the process.

A message says what is wrong, where, what was found, what was expected, and what to do. Anything that is not one of these is a defect of the
program and shows its traceback. The codes are part of the command line (docs/errors.md); other programs rely on them.
"""

from __future__ import annotations

import sys


class MossTrainError(Exception):
    """Base of the errors that end a program with a message instead of a traceback."""

    exit_code = 1
    rank0_knows = False
    """Whether rank 0 has written down how the run ended; before that, the other ranks had better not leave."""


class UsageError(MossTrainError):
    """The command line or the configuration is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more configuration keys are wrong; all of them are in the message.

    Args:
        problems: One sentence for each key, naming it.
    """

    def __init__(self, problems: list[str]):
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {problem}" for problem in problems))


class DataError(MossTrainError):
    """A record, a tokenizer or a data path is wrong."""

    exit_code = 3


class CheckpointError(MossTrainError):
    """A model directory is missing, incomplete or of another shape than the model."""

    exit_code = 4


class ResumeError(MossTrainError):
    """A run cannot go on from its checkpoint, because what must not change has changed."""

    exit_code = 5


class NonFiniteError(MossTrainError):
    """The loss or a gradient is not finite, or the loss keeps jumping; the weights were not updated."""

    exit_code = 6


class DiskFullError(MossTrainError):
    """No space is left where an artefact is being written."""

    exit_code = 7


class OutOfMemoryError(MossTrainError):
    """A device, or the machine, has no memory left."""

    exit_code = 8


class LostRankError(MossTrainError):
    """A rank is gone, or makes no progress."""

    exit_code = 9


class RefusedError(MossTrainError):
    """What was made is not what it should be, and is not kept."""

    exit_code = 10


class FailedElsewhereError(MossTrainError):
    """Another rank failed; this one ends with its message and exit code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class PreemptedError(MossTrainError):
    """Asked to stop; what was trained is saved, and the same command goes on from there."""

    exit_code = 75


def report(message: str, code: int) -> None:
    """Prints how a program ends."""
    kind = "stopped" if code == PreemptedError.exit_code else "error"
    print(f"\n{kind}: {message}\n(exit code {code})", file=sys.stderr, flush=True)
