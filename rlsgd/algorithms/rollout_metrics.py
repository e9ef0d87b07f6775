"""Metrics of one rollout, for logging with the first update made from it."""

from __future__ import annotations

import torch

from rlsgd.core.problems import Scores
from rlsgd.core.types import Rollouts
from rlsgd.functional.advantages import zero_variance_groups


def rollout_metrics(rollouts: Rollouts, scores: Scores, group_size: int) -> dict[str, float]:
    """Rewards and lengths of one rollout, under the names that TRL's GRPO uses where it has one."""
    rewards = torch.tensor(scores.rewards)
    counts = torch.stack([rollouts.completion_mask.sum(1), rollouts.truncated.long()]).cpu()
    lengths, truncated = counts[0].float(), counts[1].bool()
    groups = rewards.view(-1, group_size)
    finished = lengths[~truncated]
    metrics = {
        "reward": rewards.mean(),
        "reward_std": groups.std(1).mean() if group_size > 1 else torch.tensor(0.0),
        "frac_reward_zero_std": zero_variance_groups(rewards, group_size).float().mean(),
        "rollout/accuracy": (rewards >= scores.full_marks).float().mean(),
        "rollout/verifier_failures": torch.tensor(float(sum(map(bool, scores.failures)))),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/mean_terminated_length": finished.mean() if len(finished) else lengths.mean(),
        "completions/clipped_ratio": truncated.float().mean(),
        "num_tokens": lengths.sum(),
    }
    for name, part in scores.parts.items():
        metrics[f"rewards/{name}/mean"] = torch.tensor(part).mean()
        metrics[f"rewards/{name}/std"] = torch.tensor(part).std(correction=0)
    return {name: float(value) for name, value in metrics.items()}
