"""REINFORCE (Williams 1992): the plain policy gradient, with a choice of baselines.

Differs from GRPO: the baseline need not be that of the group, advantages are never divided by a
standard deviation, nothing is clipped, and the log-probabilities of a completion are summed, so
that the gradient estimates that of the expected reward. Differs from the textbook: where a rollout
is used for several updates the gradient is importance-weighted by the (detached) ratio of each
token, which is exactly 1 at the first.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rlsgd.algorithms.rl import RLModule
from rlsgd.core.distributed import global_sum
from rlsgd.core.types import Microbatch, Rollouts
from rlsgd.functional.advantages import group_relative
from rlsgd.functional.aggregation import Aggregation
from rlsgd.functional.losses import weighted_logprob_loss

Baseline = Literal["group", "batch", "running", "none"]


class REINFORCE(RLModule):
    """Reward minus a baseline, times the gradient of the completion's log-probability.

    Args:
        baseline: number taken off every reward: `group`, the mean of the prompt's completions;
            `batch`, that of the rollout on all ranks; `running`, a decaying mean of the batch means
            of earlier iterations (in the first one, its own); or `none`. The first two include the
            completion itself, which shrinks the gradient by 1/group_size or 1/batch; RLOO does not.
        running_decay: share of the running baseline, in [0, 1), that one iteration keeps.
        aggregation: how per-token losses become one number; see RLModule.
    """

    running_reward: Tensor

    def __init__(
        self,
        baseline: Baseline = "batch",
        running_decay: float = 0.9,
        aggregation: Aggregation = "seq-mean-token-sum",
        **kwargs: Any,
    ) -> None:
        super().__init__(aggregation=aggregation, **kwargs)
        baselines = {
            "group": self.group_advantages,
            "batch": self.batch_advantages,
            "running": self.running_advantages,
            "none": self.plain_advantages,
        }
        if baseline not in baselines:
            raise ValueError(
                f"--model.baseline {baseline!r} is unknown; choose one of {', '.join(baselines)}"
            )
        if not 0 <= running_decay < 1:
            raise ValueError(f"--model.running_decay must be in [0, 1) (got {running_decay})")
        self.baseline = baseline
        self.running_decay = running_decay
        self.compute_advantages = baselines[baseline]
        self.register_buffer("running_reward", torch.tensor(float("nan")))  # in checkpoints

    def check_group_size(self, group_size: int) -> None:
        if self.baseline == "group" and group_size == 1:
            raise ValueError(
                "--data.group_size 1 with --model.baseline group: every advantage would be 0; use "
                "another baseline or at least 2"
            )

    def advantages(self, rollouts: Rollouts, group_size: int) -> Tensor:
        return self.compute_advantages(rollouts.rewards, group_size)

    def plain_advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        return rewards

    def group_advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        return group_relative(rewards, group_size, scale=False)

    def batch_advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        return rewards - _global_mean(rewards)

    def running_advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        mean = _global_mean(rewards)
        before = torch.where(self.running_reward.isnan(), mean, self.running_reward)
        self.running_reward.copy_(self.running_decay * before + (1 - self.running_decay) * mean)
        return rewards - before

    def per_token_loss(self, logprobs: Tensor, old_logprobs: Tensor, batch: Microbatch) -> Tensor:
        mask = batch.completion_mask
        ratio = self.ratio(logprobs, old_logprobs, mask)
        return weighted_logprob_loss(logprobs, ratio, batch.advantages, mask)


def _global_mean(rewards: Tensor) -> Tensor:
    total, count = global_sum(torch.stack([rewards.sum(), torch.ones_like(rewards).sum()]))
    return total / count
