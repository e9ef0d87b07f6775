"""REINFORCE++ and REINFORCE++-baseline (arXiv:2501.03262).

Differs from GRPO in the advantages. They are whitened over the tokens of the whole rollout on all
ranks, not within the group of a prompt, so groups of one will do; and the KL penalty is a part of
the reward: token t is credited with reward - kl_coef * (sum of KL from t to the end), eq. 8.
The -baseline variant first takes off the mean reward of the group, and has its KL in the loss,
estimated by k2. Clipping is GRPO's. Differs from the paper: kl_coef is 0 unless set.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from rlsgd.algorithms.rl import RLModule
from rlsgd.core.distributed import global_sum
from rlsgd.core.flags import flags
from rlsgd.core.types import Rollouts
from rlsgd.functional.advantages import group_relative
from rlsgd.functional.critic import returns_to_go
from rlsgd.functional.kl import KLEstimator
from rlsgd.functional.losses import Clip
from rlsgd.functional.masked import masked_whiten


class REINFORCEPlusPlus(RLModule):
    """Globally whitened advantages, KL in the reward, the clipped surrogate.

    Args:
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        kl_estimator: estimator of the KL in the reward: `k1`, whose score-function gradient is the
            KL's.
        advantage_eps: number added to the variance of the advantages.
    """

    kl_in_loss = False

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_estimator: KLEstimator = "k1",
        advantage_eps: float = 1e-8,
        **kwargs: Any,
    ) -> None:
        super().__init__(kl_estimator=kl_estimator, **kwargs)
        with flags("--model."):
            self.clip = Clip(clip_low, clip_high)
        self.advantage_eps = advantage_eps

    def baselined(self, rewards: Tensor, group_size: int) -> Tensor:
        """Rewards [B] as they are; the variant takes a baseline off."""
        return rewards

    def advantages(self, rollouts: Rollouts, group_size: int) -> Tensor:
        mask = rollouts.completion_mask
        rewards = self.baselined(rollouts.rewards, group_size)
        credit = rewards[:, None] - returns_to_go(self.reward_kl(rollouts), mask)
        return masked_whiten(credit, mask, eps=self.advantage_eps, global_sum=global_sum)


class REINFORCEPlusPlusBaseline(REINFORCEPlusPlus):
    """REINFORCE++ on rewards minus the mean of their group, with the KL term in the loss.

    Args:
        kl_estimator: estimator of the KL term in the loss; `k2` is the paper's.
    """

    smallest_group: ClassVar[int] = 2
    kl_in_loss = True

    def __init__(self, kl_estimator: KLEstimator = "k2", **kwargs: Any) -> None:
        super().__init__(kl_estimator=kl_estimator, **kwargs)

    def baselined(self, rewards: Tensor, group_size: int) -> Tensor:
        return group_relative(rewards, group_size, scale=False)
