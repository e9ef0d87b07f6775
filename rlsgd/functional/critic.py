"""Rewards by token and what a critic adds: returns, generalized advantages, the value loss."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsgd.functional.losses import bounded


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


def validate_gae(gamma: float, lam: float) -> None:
    """Raise ValueError unless both are in [0, 1]."""
    for name, number in (("gamma", gamma), ("lam", lam)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be between 0 and 1 (got {number})")


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


def validate_value_clip(clip: float | None) -> None:
    """Raise ValueError unless the clip is positive or None."""
    if clip is not None and not clip > 0:
        raise ValueError(f"value_clip must be above 0, or unset for no clip (got {clip})")


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None
) -> Tensor:
    """Half the squared error of the critic per token, the worse of clipped and unclipped.

    The clip of PPO's reference implementation: the loss sees the value move by at most `clip` from
    its value at rollout time. The factor 1/2 is there with and without clip.

    Args:
        values: [B, T] of the critic, with gradient.
        old_values: [B, T] of the critic at rollout time.
        returns: [B, T] targets.
        mask: [B, T] bool.
        clip: largest move, in units of the reward; None for no clip.

    Returns:
        [B, T], 0 where masked.
    """
    validate_value_clip(clip)
    squared_error = torch.where(mask, values - returns, 0.0).square()
    if clip is None:
        return 0.5 * squared_error
    clipped = old_values + bounded(values - old_values, -clip, clip)
    clipped_squared_error = torch.where(mask, clipped - returns, 0.0).square()
    return 0.5 * torch.maximum(squared_error, clipped_squared_error)
