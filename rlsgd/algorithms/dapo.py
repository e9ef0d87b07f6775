"""DAPO: decoupled clip and dynamic sampling policy optimization (arXiv:2503.14476).

Differs from GRPO in four ways: the clip is wider above than below; the loss is a mean over tokens;
completions near the token budget are penalised; and groups whose completions were all scored
alike, which carry no gradient, are replaced by groups of other prompts ("dynamic sampling").
Differs from the paper, which samples until the batch is full: the extra rounds are bounded, and
groups that could not be replaced are kept and counted. Whether a group was scored alike is seen
from its verifier's rewards, without the length penalty. As in the paper there is no KL term.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlsgd.algorithms.grpo import GRPO
from rlsgd.core.distributed import gathered
from rlsgd.core.problems import Prompt, Scores
from rlsgd.core.types import Rollouts
from rlsgd.functional.advantages import group_relative, overlong_penalty, zero_variance_groups
from rlsgd.rollout.join import join_rollouts, join_scores


class DAPO(GRPO):
    """GRPO with a higher upper clip, a penalty of long completions, and dynamic sampling.

    Metrics of rewards and lengths are those of the groups that are trained on, so they are not of
    the policy: `dynamic_sampling/sampled_accuracy` is, and it counts every completion sampled.

    Args:
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        overlong_tokens: number of last tokens of the budget over which the penalty grows, up to
            overlong_coef; none means a fifth of max_completion_tokens, as in the paper; 0 is off.
        overlong_coef: the reward that a completion loses that fills the budget.
        extra_rounds: the most rounds of sampling, after the first, to replace groups that carry no
            gradient. A round samples as many prompts as the rank with most such groups has.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        overlong_tokens: int | None = None,
        overlong_coef: float = 1.0,
        extra_rounds: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, **kwargs)
        if overlong_tokens is None:
            overlong_tokens = self.max_completion_tokens // 5
        if not 0 <= overlong_tokens <= self.max_completion_tokens:
            raise ValueError(
                "--model.overlong_tokens must be between 0 and --model.max_completion_tokens "
                f"{self.max_completion_tokens} (got {overlong_tokens})"
            )
        if overlong_coef < 0 or extra_rounds < 0:
            raise ValueError("--model.overlong_coef and --model.extra_rounds must not be negative")
        self.overlong_tokens = overlong_tokens
        self.overlong_coef = overlong_coef
        self.extra_rounds = extra_rounds

    def advantages(self, rollouts: Rollouts, group_size: int) -> Tensor:
        lengths = rollouts.completion_mask.sum(1)
        penalty = overlong_penalty(lengths, self.max_completion_tokens, self.overlong_tokens)
        rollouts.metrics["overlong_penalty"] = float(self.overlong_coef * penalty.mean())
        return group_relative(
            rollouts.rewards + self.overlong_coef * penalty,
            group_size,
            scale=self.scale_advantages,
            ddof=self.advantage_ddof,
            eps=self.advantage_eps,
        )

    def collect(
        self, prompts: list[Prompt], group_size: int, *, attempt: int = 0
    ) -> tuple[Rollouts, Scores]:
        """Sample a group for each prompt, then replace those without a gradient."""
        rounds = [super().collect(prompts, group_size)]
        alike = _scored_alike(rounds[0], group_size)  # [number of groups sampled so far]
        chosen = torch.arange(len(prompts))  # the group that each place in the batch is taken by
        for attempt in range(1, self.extra_rounds + 1):
            wanted = max(gathered([int(alike[chosen].sum())]))  # ranks sample in step
            reserve = self.reserve_prompts(attempt)[:wanted] if wanted else []
            if not reserve:
                break
            rounds.append(super().collect(reserve, group_size, attempt=attempt))
            fresh = _scored_alike(rounds[-1], group_size)
            places = torch.nonzero(alike[chosen]).flatten()
            useful = len(alike) + torch.nonzero(~fresh).flatten()
            number = min(len(places), len(useful))
            chosen[places[:number]] = useful[:number]
            alike = torch.cat([alike, fresh])
        rows = (chosen[:, None] * group_size + torch.arange(group_size)).flatten()
        pad: Any = self.tokenizer.pad_token_id
        sampled = join_rollouts([r for r, _ in rounds], pad)
        correct = [reward >= s.full_marks for _, s in rounds for reward in s.rewards]
        rollouts = sampled.select(rows)
        rollouts.metrics = {
            "dynamic_sampling/rounds": len(rounds),
            "dynamic_sampling/replaced_groups": int((chosen >= len(prompts)).sum()),
            "dynamic_sampling/kept_zero_variance_groups": int(alike[chosen].sum()),
            "dynamic_sampling/sampled_accuracy": sum(correct) / len(correct),
            "dynamic_sampling/sampled_tokens": int(sampled.completion_mask.sum()),
        }
        return rollouts, join_scores([s for _, s in rounds], rows.tolist())

    def reserve_prompts(self, attempt: int) -> list[Prompt]:
        """Further prompts of this epoch, which no earlier attempt has seen."""
        ranks = {"rank": self.global_rank, "world_size": self.trainer.world_size}
        return self.task_data.prompts(self.current_epoch, attempt=attempt, **ranks)


def _scored_alike(sampled: tuple[Rollouts, Scores], group_size: int) -> Tensor:
    return zero_variance_groups(torch.tensor(sampled[1].rewards), group_size)
