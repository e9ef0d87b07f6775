"""GRPO: group-relative policy optimization (arXiv:2402.03300).

Differences from the paper: the loss is averaged over tokens by default (`--model.aggregation
seq-mean-token-mean` is the paper's), and the KL term is off unless `--model.kl_coef` is set
(arXiv:2602.07729 uses 0.001). With one update from each rollout every ratio is 1 and clipping is inert.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlsgd.algorithms.rl import RLModule
from rlsgd.functional.advantages import group_relative
from rlsgd.functional.kl import kl_penalty, validate_kl_estimator
from rlsgd.functional.losses import clip_fractions, clipped_policy_loss, validate_clip
from rlsgd.types import Rollouts


class GRPO(RLModule):
    """Group-relative advantages, the clipped surrogate, and an optional KL term in the loss.

    Args:
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high.
        dual_clip: bound of the ratio where the advantage is negative (arXiv:1912.09729); none is off.
        scale_advantages: divide each group's centred rewards by their standard deviation.
        advantage_ddof: 1 for the sample standard deviation, 0 for the population's.
        advantage_eps: added to the standard deviation.
        kl_estimator: `k1`, `k2`, `k3` or `k3-corrected` (see functional/kl.py for their gradients).
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = None,
        scale_advantages: bool = True,
        advantage_ddof: int = 1,
        advantage_eps: float = 1e-6,
        kl_estimator: str = "k3",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        validate_clip(clip_low, clip_high, dual_clip)
        validate_kl_estimator(kl_estimator)
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        self.scale_advantages = scale_advantages
        self.advantage_ddof = advantage_ddof
        self.advantage_eps = advantage_eps
        self.kl_estimator = kl_estimator

    def check_group_size(self, group_size: int) -> None:
        """A group of one has no spread to normalise by."""
        if group_size == 1:
            raise ValueError(
                "--data.group_size 1: every group-relative advantage would be 0; use at least 2"
            )

    def advantages(self, rollouts: Rollouts, group_size: int) -> Tensor:
        assert rollouts.rewards is not None
        return group_relative(
            rollouts.rewards,
            group_size,
            scale=self.scale_advantages,
            ddof=self.advantage_ddof,
            eps=self.advantage_eps,
        )

    def loss(self, batch: Rollouts) -> Tensor:
        mask = batch.completion_mask
        logprobs, old_logprobs = self.policy_logprobs(batch)
        clip = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        per_token = clipped_policy_loss(
            logprobs, old_logprobs, batch.advantages, mask, dual_clip=self.dual_clip, **clip
        )
        if batch.ref_logprobs is not None:
            kl = kl_penalty(
                logprobs,
                batch.ref_logprobs,
                mask,
                estimator=self.kl_estimator,
                old_logprobs=old_logprobs,
            )
            per_token = per_token + self.kl_coef * kl
            self.log_token_mean("kl", kl, batch)
        for name, clipped in clip_fractions(
            logprobs, old_logprobs, batch.advantages, mask, **clip
        ).items():
            self.log_token_mean(name, clipped, batch)
        return self.aggregate(per_token, batch)
