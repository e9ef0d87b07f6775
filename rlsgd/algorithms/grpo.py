"""GRPO: group-relative policy optimization (arXiv:2402.03300).

Differences from the paper: the loss is averaged over tokens by default (`--model.aggregation
seq-mean-token-mean` is the paper's), and the KL term is off unless `--model.kl_coef` is set
(arXiv:2602.07729 uses 0.001). With one update from each rollout every ratio is 1 and clipping is
inert. `RLModule.per_token_loss` is the clipped surrogate; `RLModule.loss` adds kl_coef * KL to it
and aggregates.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from rlsgd.algorithms.rl import RLModule
from rlsgd.core.flags import flags
from rlsgd.core.types import Rollouts
from rlsgd.functional.advantages import group_relative
from rlsgd.functional.losses import Clip


class GRPO(RLModule):
    """Group-relative advantages, the clipped surrogate, and an optional KL term in the loss.

    Args:
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        dual_clip: bound of the ratio where the advantage is negative (arXiv:1912.09729), or none.
        scale_advantages: whether to divide each group's centred rewards by their standard
            deviation.
        advantage_ddof: degrees of freedom: 1 for the sample standard deviation, 0 for the
            population's.
        advantage_eps: number added to the standard deviation.
    """

    smallest_group: ClassVar[int] = 2

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = None,
        scale_advantages: bool = True,
        advantage_ddof: int = 1,
        advantage_eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        with flags("--model."):
            self.clip = Clip(clip_low, clip_high, dual_clip)
        self.scale_advantages = scale_advantages
        self.advantage_ddof = advantage_ddof
        self.advantage_eps = advantage_eps

    def advantages(self, rollouts: Rollouts, group_size: int) -> Tensor:
        return group_relative(
            rollouts.rewards,
            group_size,
            scale=self.scale_advantages,
            ddof=self.advantage_ddof,
            eps=self.advantage_eps,
        )
