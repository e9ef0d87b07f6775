"""Advantages: relative to the group of a prompt (no critic), or generalized (with one)."""

from __future__ import annotations

import torch
from torch import Tensor


def _in_groups(rewards: Tensor, group_size: int) -> Tensor:
    """[B] -> [P, G] in float32 or better, with the checks that every group baseline needs."""
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(
            f"--data.group_size {group_size} does not divide the {len(rewards)} completions of "
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
            "--data.group_size 1 leaves nothing to compare a completion with: every advantage "
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


def terminal_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """Place the reward of a completion on its last unmasked token, the only place it is learnt.

    Args:
        rewards: [B]
        mask: [B, T] bool.

    Returns:
        [B, T], 0 elsewhere; a row with no unmasked token is all 0.
    """
    unmasked_after = mask.flip(1).cumsum(dim=1).flip(1)
    return torch.where(mask & (unmasked_after == 1), rewards[:, None], 0.0)


def returns_to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    """Sum of the rewards from each token to the end of its completion, undiscounted.

    Args:
        rewards: [B, T] received for token t.
        mask: [B, T] bool.

    Returns:
        [B, T], 0 where masked.
    """
    rewards = torch.where(mask, rewards, 0.0)
    return torch.where(mask, rewards.flip(1).cumsum(dim=1).flip(1), 0.0)


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


def validate_gae(gamma: float, lam: float) -> None:
    """Raise ValueError unless both are in [0, 1]."""
    for name, number in (("gamma", gamma), ("lam", lam)):
        if not 0 <= number <= 1:
            raise ValueError(f"--model.{name} must be between 0 and 1 (got {number})")


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation over the unmasked tokens (arXiv:1506.02438, eq. 16).

    The unmasked tokens of a row follow each other directly: rewards and values at masked positions
    are not read, so a gap inside a completion neither discounts nor bootstraps.

    Args:
        rewards: [B, T] reward received for token t; see `terminal_rewards`.
        values: [B, T] value of the state in which token t was sampled.
        mask: [B, T] bool.
        gamma: discount factor, in [0, 1].
        lam: trace decay, in [0, 1]; 0 is the one-step error, 1 the Monte Carlo return.
        bootstrap_values: [B] value of the state after the last unmasked token, for completions
            cut off by the token budget; 0 for those that ended. None: all ended.

    Returns:
        advantages and returns (advantages + values), both [B, T], 0 where masked, no gradient.
    """
    validate_gae(gamma, lam)
    assert rewards.shape == values.shape == mask.shape, "rewards, values and mask are [B, T]"
    values = torch.where(mask, values, 0.0)
    advantage = torch.zeros_like(values[:, 0])
    next_value = advantage if bootstrap_values is None else bootstrap_values.to(values.dtype)
    columns = []
    for t in reversed(range(values.shape[1])):
        error = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(mask[:, t], error + gamma * lam * advantage, advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        columns.append(advantage)
    advantages = torch.where(mask, torch.stack(columns[::-1], dim=1), 0.0)
    return advantages, advantages + values


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - variance of (returns - values) / variance of returns, over the unmasked tokens.

    1 is a perfect critic, 0 one that is as good as a constant, negative a worse one. Where the
    returns do not vary beyond rounding there is nothing to explain, and the result is 0.

    Args:
        values: [B, T]
        returns: [B, T]
        mask: [B, T] bool.
    """
    returns, error = returns[mask], (returns - values)[mask]
    if len(returns) == 0:
        return torch.zeros((), device=values.device)
    variance = returns.var(correction=0)
    varies = variance > 1e-10 * returns.square().mean()
    explained = 1 - error.var(correction=0) / torch.where(varies, variance, 1.0)
    return torch.where(varies, explained, 0.0)
