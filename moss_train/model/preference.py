"""The objective of a preference model: Bradley-Terry over the pairs of ranked responses, in float32.

Shape legend: R responses of a batch, P pairs of them, C comparisons.

With the margin d = r_better - r_worse of a pair, and s its strength (1 where none is known):

    -log sigma(d)                                     Bradley and Terry 1952; Ouyang et al. 2022, eq. 1, with all pairs of a context
    -log sigma(d - m s)        `margin` m             Touvron et al. 2023 (Llama 2), eq. 2
    -s log sigma(d)            `strength_as_weight`   Wang et al. 2024 (HelpSteer2-Preference), "scaled Bradley-Terry"
    -(1-e) log sigma(d) - e log sigma(-d)             `label_smoothing` e: the chance that a label is wrong (conservative, Mitchell 2023)
    -(log sigma(d) + log sigma(-d)) / 2               a tie, both being as likely: smallest at d = 0
    + c (r_better + r_worse)^2                        `centring` c: keeps rewards near 0 (Eisenstein et al. 2023)

The loss of a comparison is the mean over its pairs, so each comparison counts once whatever its K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class PreferenceObjective:
    """Options of the loss.

    Attributes:
        margin: Difference of rewards that a pair of strength 1 should reach.
        strength_as_weight: Whether a pair's loss is multiplied by its strength.
        label_smoothing: Chance that a label is wrong, from 0 up to 0.5.
        centring: Coefficient of the squared sum of a pair's rewards.
        lm_coefficient: Coefficient of the language model's loss on the best response, the mean over its tokens.
    """

    margin: float = 0.0
    strength_as_weight: bool = False
    label_smoothing: float = 0.0
    centring: float = 0.0
    lm_coefficient: float = 0.0


class Pairs(NamedTuple):
    """The pairs of a batch.

    Attributes:
        responses: int64 [P, 2], numbers of the better and the worse response; of a tie in any order.
        weight: float32 [P], 1 / number of pairs of its comparison.
        untied_weight: float32 [P], 1 / number of pairs of its comparison that are no ties; 0 for a tie.
        strength: float32 [P]. tied: bool [P].
    """

    responses: torch.Tensor
    weight: torch.Tensor
    untied_weight: torch.Tensor
    strength: torch.Tensor
    tied: torch.Tensor


class PreferenceLoss(NamedTuple):
    """Of a batch, as sums over comparisons.

    Attributes:
        loss_sum: Scalar float32 with gradient. bradley_terry, centring: Its parts, without gradient (centring with its coefficient).
        metrics: name -> (sum, weight), of comparisons: accuracy (an equal pair counts half), margin and brier over pairs that are no ties.
    """

    loss_sum: torch.Tensor
    bradley_terry: torch.Tensor
    centring: torch.Tensor
    metrics: dict[str, tuple[torch.Tensor, float]]


def preference_loss(rewards: torch.Tensor, pairs: Pairs, objective: PreferenceObjective) -> PreferenceLoss:
    """The loss of a batch's comparisons.

    Args:
        rewards: float32 [R].
        pairs: Of them.
        objective: Options.
    """
    better, worse = rewards[pairs.responses[:, 0]], rewards[pairs.responses[:, 1]]
    margin = better - worse
    aimed = margin - objective.margin * pairs.strength
    wrong = torch.where(pairs.tied, 0.5, objective.label_smoothing)
    aimed = torch.where(pairs.tied, margin, aimed)
    each = -(1 - wrong) * F.logsigmoid(aimed) - wrong * F.logsigmoid(-aimed)
    if objective.strength_as_weight:
        each = each * torch.where(pairs.tied, 1.0, pairs.strength)
    bradley_terry = (each * pairs.weight).sum()
    centring = objective.centring * ((better + worse).square() * pairs.weight).sum()
    # Without a pair the sum is an empty one, and still a function of the rewards: every rank has a backward pass.
    loss_sum = bradley_terry + centring + 0.0 * rewards.sum()
    with torch.no_grad():
        untied, count = pairs.untied_weight, float(pairs.untied_weight.sum())
        metrics = {
            "accuracy": ((untied * ((margin > 0).float() + 0.5 * (margin == 0).float())).sum(), count),
            "margin": ((untied * margin).sum(), count),
            "brier": ((untied * torch.sigmoid(-margin).square()).sum(), count),
        }
    return PreferenceLoss(loss_sum, bradley_terry.detach(), centring.detach(), metrics)
