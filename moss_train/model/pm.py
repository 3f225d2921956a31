"""The preference model: the trunk of the language model with a head that gives one number, the reward of a response.

Shape legend: B batch (rows), T tokens of a row, D hidden_size, R responses of a batch, P pairs, M supervised tokens.
"""

from __future__ import annotations

import copy
from typing import ClassVar, NamedTuple

import torch
from transformers import CodeGenConfig

from moss_train.errors import UsageError
from moss_train.model.codegen import CodeGenModel, LMHead
from moss_train.model.linear import Linear
from moss_train.model.preference import Pairs, PreferenceObjective, preference_loss
from moss_train.model.pretrained import CodeGenPreTrained
from moss_train.model.shapes import PM, PM_AND_LM, config_problems, head_of

PM_ARCHITECTURE = "CodeGenPM"
"""What config.json of a preference model names: no stock class reads it as a language model by mistake."""


class PMOutput(NamedTuple):
    """Of a batch. A tuple, because DeepSpeed's hooks look for tensors in tuples and dicts only.

    Attributes:
        loss_sum: Scalar float32 with gradient, summed over comparisons; 0 without pairs.
        rewards: float32 [R], without gradient.
        metrics: name -> (sum, weight): loss, accuracy, margin, brier, reward; lm_loss and centring where they are part of the objective.
    """

    loss_sum: torch.Tensor
    rewards: torch.Tensor
    metrics: dict[str, tuple[torch.Tensor | float, float]]


class RewardHead(Linear):
    """[1, D]: the reward of a hidden state, in float32 whatever the weights are stored in."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """float32 [R] of hidden states [R, D]."""
        return (hidden_states.float() * self.weight.float()).sum(dim=-1)


class CodeGenPM(CodeGenPreTrained):
    """Trunk and reward head; the output projection too where the objective has a language model's loss."""

    # Of the language model it is made from.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        *CodeGenPreTrained._keys_to_ignore_on_load_unexpected,
        r"^lm_head\.",
    ]

    def __init__(self, config: CodeGenConfig):
        problems = config_problems(config)
        if problems:
            raise UsageError("this model cannot be built:\n" + "\n".join(f"  - {problem}" for problem in problems))
        super().__init__(config)
        self.transformer = CodeGenModel(config)
        self.score = RewardHead(config.n_embd, 1, bias=False)
        if head_of(config) == PM_AND_LM:
            self.lm_head = LMHead(config.n_embd, config.vocab_size)
        self._objective = PreferenceObjective()
        self.post_init()

    def set_objective(self, objective: PreferenceObjective) -> None:
        """The options of the loss.

        Raises:
            UsageError: It has a language model's loss, and the model no output projection.
        """
        if objective.lm_coefficient and head_of(self.config) != PM_AND_LM:
            raise UsageError("a language model's loss needs a model with both heads")
        self._objective = objective

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        reward_index: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pair_index: torch.Tensor | None = None,
        pair_weight: torch.Tensor | None = None,
        pair_untied_weight: torch.Tensor | None = None,
        pair_strength: torch.Tensor | None = None,
        pair_tied: torch.Tensor | None = None,
        lm_targets: torch.Tensor | None = None,
        lm_weights: torch.Tensor | None = None,
    ) -> PMOutput:
        """Rewards, and with pairs the loss.

        Args:
            input_ids: int64 [B, T].
            reward_index: int64 [R], position of the last token of each response in the flattened B*T batch, counted from lengths.
            cu_seqlens: int32 [documents + 1], on the CPU: boundaries of the responses with their contexts over the flattened batch.
            position_ids: int64 [B, T], restarting with each document.
            attention_mask: [B, T], zero at padding, instead of cu_seqlens; a row is then one response.
            pair_index, pair_weight, pair_untied_weight, pair_strength, pair_tied: The fields of `preference.Pairs`, or None.
            lm_targets: int64 [B, T], already shifted: what the best response of each comparison says.
            lm_weights: float32 [B, T], of these: 1 / number of them in their comparison.
        """
        hidden_states = self.transformer(input_ids, cu_seqlens=cu_seqlens, position_ids=position_ids, attention_mask=attention_mask)
        rewards = self.score(hidden_states.flatten(0, 1).index_select(0, reward_index))
        if pair_index is None:
            return PMOutput(0.0 * rewards.sum(), rewards.detach(), {})
        if pair_weight is None or pair_untied_weight is None or pair_strength is None or pair_tied is None:
            raise ValueError("pairs are given by pair_index and all of pair_weight, pair_untied_weight, pair_strength, pair_tied")
        pairs = Pairs(pair_index, pair_weight, pair_untied_weight, pair_strength, pair_tied)
        found = preference_loss(rewards, pairs, self._objective)
        comparisons = float(pair_weight.sum())
        metrics: dict[str, tuple[torch.Tensor | float, float]] = {
            "loss": (found.bradley_terry, comparisons),
            "reward": (rewards.detach().sum(), float(len(rewards))),
            **found.metrics,
        }
        loss_sum = found.loss_sum
        if self._objective.centring:
            metrics["centring"] = (found.centring, comparisons)
        if self._objective.lm_coefficient:
            losses, _ = self.lm_head(hidden_states, lm_targets, token_weights=lm_weights)
            loss_sum = loss_sum + self._objective.lm_coefficient * losses.loss_sum
            metrics["lm_loss"] = (losses.loss_sum.detach(), comparisons)
        return PMOutput(loss_sum, rewards.detach(), metrics)


def pm_config(config: CodeGenConfig, with_lm: bool = False) -> CodeGenConfig:
    """The configuration of a preference model on the trunk of another model."""
    made = copy.deepcopy(config)
    made.moss_head = PM_AND_LM if with_lm else PM
    made.architectures = [PM_ARCHITECTURE]
    return made
