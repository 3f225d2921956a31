"""The loss-spike guard: leaves out updates whose loss jumps far above the recent ones."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from moss_train.errors import NonFiniteError

WINDOW = 128
"""Losses that the mean and the deviation are taken over."""
MOST_IN_A_ROW = 10


@dataclass
class SpikeGuard:
    """Decides, from the loss of each step, whether its update is left out.

    A loss more than `sigmas` standard deviations above the mean of the last `WINDOW` good ones is a spike (as in OLMo 2, section 3.2).
    Losses that are not finite never come here, and those of spikes do not enter the window, so neither can blind it. It begins to judge
    when the window is full, and anew where the mixture of the data changes. The window is part of a checkpoint: a resumed run
    decides as the uninterrupted one.

    Attributes:
        sigmas: 0 turns the guard off.
        recent: The last good losses, oldest first.
        skipped: Steps whose update was left out.
    """

    sigmas: float = 6.0
    recent: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)

    def forget(self) -> None:
        """Begins the window anew: the losses that come are of other data, and say nothing beside those before."""
        self.recent = []

    def is_spike(self, step: int, loss: float) -> bool:
        """Whether the update of a step is left out; notes the loss.

        Args:
            step: Number of the step, from 1.
            loss: Its mean loss; finite.

        Raises:
            NonFiniteError: Too many steps in a row: the run has diverged.
        """
        if self.sigmas and len(self.recent) >= WINDOW:
            mean = statistics.fmean(self.recent)
            if loss > mean + self.sigmas * statistics.pstdev(self.recent, mean) and not math.isclose(loss, mean):
                self.skipped.append(step)
                in_a_row = self.skipped[-MOST_IN_A_ROW:]
                if len(in_a_row) == MOST_IN_A_ROW and in_a_row[0] == step - MOST_IN_A_ROW + 1:
                    raise NonFiniteError(
                        f"steps {in_a_row[0]} to {step}: the loss ({loss:.4g}) has been more than {self.sigmas:g} standard deviations "
                        f"above the mean of the {WINDOW} good steps before ({mean:.4g}) for {MOST_IN_A_ROW} steps in a row, and these "
                        "updates were left out; the run has diverged. Go on from an earlier checkpoint with a lower optim.lr, or set "
                        "train.spike_sigmas=0 to train through it"
                    )
                return True
        self.recent = [*self.recent[-WINDOW + 1 :], loss]
        return False
