"""RLOO: REINFORCE leave-one-out (arXiv:2402.14740).

Differs from GRPO: a completion's baseline is the mean reward of the *others* of its group, so that
the gradient is unbiased; there is no standard deviation; a completion is one action, so the ratio
is that of its whole probability (the product of the token ratios) and the KL penalty is a part of
its reward. Differs from the paper: the ratio is clipped as in PPO, which matters from the second
update of a rollout on; at the first the gradient is the paper's, advantage * grad log
p(completion). The ratio of a whole completion runs away from 1 within a few updates: use few.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from rlsgd.algorithms.rl import RLModule
from rlsgd.core.flags import flags
from rlsgd.core.types import Rollouts
from rlsgd.functional.advantages import leave_one_out
from rlsgd.functional.aggregation import Aggregation
from rlsgd.functional.kl import KLEstimator
from rlsgd.functional.losses import Clip, sequence_ratio


class RLOO(RLModule):
    """Leave-one-out advantages and the clipped ratio of whole completions.

    The ratio stands at each token of its completion, so `seq-mean-token-mean` is the mean over
    completions. With `--model.kl_coef` the reward of a completion is lowered by kl_coef times its
    summed KL.

    Args:
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        aggregation: how per-token losses become one number; see RLModule.
        kl_estimator: estimator of the KL in the reward: `k1`, whose score-function gradient is the
            KL's.
    """

    smallest_group: ClassVar[int] = 2
    sequence_level: ClassVar[bool] = True
    kl_in_loss = False

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        aggregation: Aggregation = "seq-mean-token-mean",
        kl_estimator: KLEstimator = "k1",
        **kwargs: Any,
    ) -> None:
        super().__init__(aggregation=aggregation, kl_estimator=kl_estimator, **kwargs)
        with flags("--model."):
            self.clip = Clip(clip_low, clip_high)

    def advantages(self, rollouts: Rollouts, group_size: int) -> Tensor:
        return leave_one_out(rollouts.rewards - self.reward_kl(rollouts).sum(-1), group_size)

    def ratio(self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
        return sequence_ratio(logprobs, old_logprobs, mask, length_normalized=False)
