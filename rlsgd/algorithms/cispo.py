"""CISPO: clipped importance-sampling weight policy optimization (arXiv:2506.13585).

Differs from GRPO in the loss: the bounded ratio is a constant weight of the log-probability, where
GRPO's clip removes the gradient of a token altogether. So every token keeps a gradient, also the
rare ones whose ratio runs away first. Advantages are GRPO's. As in the paper the loss is averaged
over tokens, there is no KL term, and only the upper bound is used; the paper does not tell its
value (arXiv:2510.13786 tries 4 to 8). With one update from each rollout the gradient is GRPO's.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from rlsgd.algorithms.rl import RLModule
from rlsgd.core.types import Microbatch, Rollouts
from rlsgd.functional.advantages import group_relative
from rlsgd.functional.losses import weighted_logprob_loss


class CISPO(RLModule):
    """Group-relative advantages, and REINFORCE weighted by the detached, bounded ratio.

    Args:
        max_ratio: upper bound of the weight; TRL's `epsilon_high` of its `cispo` loss.
        scale_advantages: whether to divide each group's centred rewards by their standard
            deviation.
    """

    smallest_group: ClassVar[int] = 2

    def __init__(
        self, max_ratio: float = 5.0, scale_advantages: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not max_ratio >= 1:
            raise ValueError(
                f"--model.max_ratio must be at least 1, the ratio of the policy that sampled (got "
                f"{max_ratio})"
            )
        self.max_ratio = max_ratio
        self.scale_advantages = scale_advantages

    def advantages(self, rollouts: Rollouts, group_size: int) -> Tensor:
        return group_relative(rollouts.rewards, group_size, scale=self.scale_advantages)

    def per_token_loss(self, logprobs: Tensor, old_logprobs: Tensor, batch: Microbatch) -> Tensor:
        mask = batch.completion_mask
        ratio = self.ratio(logprobs, old_logprobs, mask)
        advantages = batch.advantages if batch.advantages.ndim == 2 else batch.advantages[:, None]
        bounded = (ratio > self.max_ratio) & (advantages != 0)  # elsewhere there is no weight
        self.log_token_mean("clip_ratio/weight_mean", bounded, batch)
        weights = ratio.clamp(max=self.max_ratio)
        return weighted_logprob_loss(logprobs, weights, batch.advantages, mask)
