"""Advantages without a critic: relative to the group of a prompt, or to the whole rollout."""

from __future__ import annotations

import torch
from torch import Tensor


def _in_groups(rewards: Tensor, group_size: int) -> Tensor:
    """[B] -> [P, G] in float32 or better, with the checks that every group baseline needs."""
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(
            f"group_size {group_size} does not divide the {len(rewards)} completions of "
            "this batch; keep whole groups together"
        )
    if not torch.isfinite(rewards).all():
        rows = torch.nonzero(~torch.isfinite(rewards)).flatten().tolist()
        raise ValueError(
            f"rewards of rows {rows} are not finite; the reward function must return a finite "
            "number for every completion, also for one it cannot read"
        )
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    return rewards.view(-1, group_size)


def _require_baseline(group_size: int) -> None:
    if group_size == 1:
        raise ValueError(
            "group_size 1 leaves nothing to compare a completion with: every advantage "
            "would be 0 or undefined; set it to 2 or more"
        )


def _all_equal(groups: Tensor) -> Tensor:
    return groups.amax(dim=1) == groups.amin(dim=1)


def zero_variance_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Which groups carry no signal because all their rewards are equal.

    Args:
        rewards: [B], the rows of a group adjacent.
        group_size: completions of one prompt.

    Returns:
        [P] bool, one for each prompt.
    """
    return _all_equal(_in_groups(rewards, group_size))


def group_relative(
    rewards: Tensor, group_size: int, *, scale: bool = True, ddof: int = 1, eps: float = 1e-6
) -> Tensor:
    """(reward - mean of its group) / (standard deviation of its group + eps).

    GRPO (arXiv:2402.03300, sec. 4.1.2). Groups whose rewards are all equal give exactly 0.

    Args:
        rewards: [B], the rows of a group adjacent.
        group_size: completions of one prompt.
        scale: divide by the standard deviation; False is Dr. GRPO (arXiv:2503.20783).
        ddof: 1 for the sample standard deviation, 0 for that of the population.
        eps: added to the standard deviation.

    Returns:
        [B]

    Raises:
        ValueError: group size 1, incomplete groups, or rewards that are not finite.
    """
    groups = _in_groups(rewards, group_size)
    _require_baseline(group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if scale:
        centred = centred / (groups.std(dim=1, correction=ddof, keepdim=True) + eps)
    return torch.where(_all_equal(groups)[:, None], 0.0, centred).flatten()


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """Reward minus the mean reward of the others in its group: RLOO (arXiv:2402.14740).

    Args:
        rewards: [B], the rows of a group adjacent.
        group_size: completions of one prompt.

    Returns:
        [B]; exactly 0 for groups whose rewards are all equal.

    Raises:
        ValueError: group size 1, incomplete groups, or rewards that are not finite.
    """
    groups = _in_groups(rewards, group_size)
    _require_baseline(group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return torch.where(_all_equal(groups)[:, None], 0.0, groups - others).flatten()


def overlong_penalty(lengths: Tensor, max_completion_tokens: int, margin: int) -> Tensor:
    """Soft penalty of long completions (DAPO, arXiv:2503.14476, eq. 13).

    Falls linearly from 0 at `max_completion_tokens - margin` tokens to -1 at the budget.

    Args:
        lengths: [B] tokens of each completion.
        max_completion_tokens: the budget of a completion.
        margin: the paper's L_cache; 0 for no penalty.

    Returns:
        [B] float32, between -1 and 0.
    """
    if margin == 0:
        return torch.zeros_like(lengths, dtype=torch.float32)
    return ((max_completion_tokens - margin - lengths) / margin).clamp(-1.0, 0.0)
