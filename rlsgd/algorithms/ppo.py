"""PPO: proximal policy optimization with a critic (arXiv:1707.06347).

Advantages are those of generalized advantage estimation (arXiv:1506.02438) over completion tokens.
As usual for language models the reward stands on the last token, gamma is 1, the critic is a model
of its own unless `--model.shared_backbone` is set, and there may be a KL penalty.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rlsgd.algorithms.actor_critic import ActorCritic, critic_metrics
from rlsgd.core.distributed import global_sum
from rlsgd.core.flags import flags
from rlsgd.core.types import Microbatch, Rollouts
from rlsgd.functional.critic import (
    clipped_value_loss,
    gae,
    terminal_rewards,
    validate_gae,
    validate_value_clip,
)
from rlsgd.functional.losses import Clip
from rlsgd.functional.masked import masked_whiten


class PPO(ActorCritic):
    """Generalized advantages, the clipped surrogate, and a clipped value loss.

    Args:
        gamma: discount factor for each token, in [0, 1].
        lam: trace decay, in [0, 1]; 0 is the one-step error, 1 the return minus the value.
        whiten_advantages: whether advantages get mean 0 and variance 1 over the rollout's tokens on
            all ranks.
        bootstrap_truncated: a completion cut off by the token budget is worth, beyond its reward,
            what the critic expects after its last token. Otherwise it ends there like any other.
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        dual_clip: bound of the ratio where the advantage is negative (arXiv:1912.09729), or none.
        value_clip: the value loss sees a value move by at most this, in units of the reward, from
            its value at rollout time; none is off.
        value_coef: weight of the value loss, a mean over tokens whatever the aggregation. Without
            a shared backbone it scales nothing but the critic's gradient: a learning rate for SGD,
            next to nothing for Adam, and the threshold of the critic's clipping.
        kl_in: where kl_coef times the KL goes: into the `loss`, or off the `reward` of each token.
            The reward takes kl_estimator k1 alone: with k2 or k3 the policy gradient has no part of
            first order in the distance from the reference.
    """

    def __init__(
        self,
        gamma: float = 1.0,
        lam: float = 1.0,
        whiten_advantages: bool = True,
        bootstrap_truncated: bool = False,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = None,
        value_clip: float | None = 0.5,
        value_coef: float = 1.0,
        kl_in: Literal["loss", "reward"] = "loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        with flags("--model."):
            validate_gae(gamma, lam)
            self.clip = Clip(clip_low, clip_high, dual_clip)
            validate_value_clip(value_clip)
        if value_coef <= 0:
            raise ValueError("--model.value_coef must be above 0: PPO needs its critic")
        self.kl_in_loss = kl_in == "loss"
        if self.kl_coef and not self.kl_in_loss and self.kl_estimator != "k1":
            raise ValueError(
                f"--model.kl_in reward needs --model.kl_estimator k1, not {self.kl_estimator}: no "
                "other has the gradient of the KL there"
            )
        self.gamma = gamma
        self.lam = lam
        self.whiten_advantages = whiten_advantages
        self.bootstrap_truncated = bootstrap_truncated
        self.value_clip = value_clip
        self.value_coef = value_coef

    def advantages(self, rollouts: Rollouts, group_size: int) -> Tensor:
        mask = rollouts.completion_mask
        rewards = terminal_rewards(rollouts.rewards, mask) - self.reward_kl(rollouts)
        values, last_values = self.values(rollouts)
        beyond = torch.where(rollouts.truncated & self.bootstrap_truncated, last_values, 0.0)
        advantages, returns = gae(
            rewards, values, mask, gamma=self.gamma, lam=self.lam, bootstrap_values=beyond
        )
        rollouts.values, rollouts.returns = values, returns
        rollouts.metrics.update(critic_metrics(values, returns, mask))
        if not self.whiten_advantages:
            return advantages
        return masked_whiten(advantages, mask, global_sum=global_sum)

    def loss(self, batch: Microbatch) -> Tensor:
        return super().loss(batch) + self.value_coef * self.value_loss(batch)

    def value_loss(self, batch: Microbatch) -> Tensor:
        """This microbatch's share of the critic's loss, a mean over the minibatch's tokens."""
        assert batch.values is not None and batch.returns is not None, "advantages sets both"
        values, _ = self.value(self.policy, batch)
        parts = (values, batch.values, batch.returns, batch.completion_mask)
        per_token = clipped_value_loss(*parts, clip=self.value_clip)
        clipped = per_token > clipped_value_loss(*parts, clip=None)
        self.log_token_mean("value_loss", per_token.detach(), batch)
        self.log_token_mean("critic/vf_clipfrac", clipped, batch)
        return self.token_mean(per_token, batch)
