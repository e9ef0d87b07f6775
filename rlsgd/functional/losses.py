"""Policy and value losses per token, unreduced; `masked.aggregate` makes one number of them."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsgd.functional.logprobs import policy_ratio


def validate_clip(clip_low: float, clip_high: float, dual_clip: float | None = None) -> None:
    """Raise ValueError unless 0 <= clip_low < 1, clip_high >= 0 and dual_clip > 1 + clip_high."""
    if not 0 <= clip_low < 1:
        raise ValueError(
            f"--model.clip_low must be in [0, 1) (got {clip_low}): the ratio is clipped below at "
            "1 - clip_low, which must stay positive"
        )
    if not clip_high >= 0:
        raise ValueError(f"--model.clip_high must be 0 or more (got {clip_high})")
    if dual_clip is not None and not dual_clip > 1 + clip_high:
        raise ValueError(
            f"--model.dual_clip must be above 1 + clip_high = {1 + clip_high} (got {dual_clip}), "
            "or unset for no bound"
        )


def _per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """[B] or [B, T] -> [B, T] with zeros where masked."""
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    return torch.where(mask, advantages, 0.0)


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """Clipped surrogate per token, to be minimised (arXiv:1707.06347, eq. 7).

    At ratio 1 its gradient is exactly that of REINFORCE, -advantage * grad logprob.

    Args:
        logprobs: [B, T] of the policy, with gradient.
        old_logprobs: [B, T] of the policy at rollout time.
        advantages: [B], one for the whole completion, or [B, T].
        mask: [B, T] bool.
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high; DAPO's "clip higher" is 0.28 (arXiv:2503.14476).
        dual_clip: where the advantage is negative the loss is at most dual_clip * |advantage|
            (arXiv:1912.09729); None for no bound.

    Returns:
        [B, T], 0 where masked.
    """
    ratio = policy_ratio(logprobs, old_logprobs, mask)
    return clipped_ratio_loss(
        ratio, advantages, mask, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )


def clipped_ratio_loss(
    ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """`clipped_policy_loss` for a ratio that is given: of tokens, or one for a whole completion.

    Args:
        ratio: [B, T], with gradient.
        advantages: [B] or [B, T].
        mask: [B, T] bool.
        clip_low: as in `clipped_policy_loss`.
        clip_high: as in `clipped_policy_loss`.
        dual_clip: as in `clipped_policy_loss`.

    Returns:
        [B, T], 0 where masked.
    """
    validate_clip(clip_low, clip_high, dual_clip)
    advantages = _per_token(advantages, mask)
    clipped = bounded(ratio, 1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, loss.minimum(-dual_clip * advantages), loss)


def bounded(values: Tensor, low: float, high: float) -> Tensor:
    """Values [...] clamped, with gradient 1 from bound to bound, both included.

    `torch.clamp` has that gradient before torch 2.15 and none at its bounds since. At the first
    step on a rollout every ratio is 1, which with a clip of 0 is a bound: there the loss must have
    the gradient of the unclipped objective.
    """
    inside = (values >= low) & (values <= high)
    return torch.where(inside, values, values.detach().clamp(low, high))


def sequence_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, length_normalized: bool
) -> Tensor:
    """One ratio for each completion, at each of its tokens.

    Length-normalized it is the geometric mean of the token ratios (GSPO, arXiv:2507.18071, eq. 7);
    otherwise their product, the ratio of the probabilities of the whole completion.

    Args:
        logprobs: [B, T] of the policy, with gradient.
        old_logprobs: [B, T] of the policy at rollout time.
        mask: [B, T] bool.
        length_normalized: divide the log-ratio by the number of unmasked tokens.

    Returns:
        [B, T], equal along each row, and 1 without gradient where masked.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0).sum(-1, keepdim=True)
    if length_normalized:
        log_ratio = log_ratio / mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mask, log_ratio, 0.0).exp()


def weighted_logprob_loss(
    logprobs: Tensor, weights: Tensor, advantages: Tensor, mask: Tensor
) -> Tensor:
    """REINFORCE with importance weights: -weight * advantage * logprob, no gradient of the weight.

    Args:
        logprobs: [B, T] of the policy, with gradient.
        weights: [B, T], for example the ratio; detached here.
        advantages: [B] or [B, T].
        mask: [B, T] bool.

    Returns:
        [B, T], 0 where masked.
    """
    logprobs = torch.where(mask, logprobs, 0.0)
    return -weights.detach() * _per_token(advantages, mask) * logprobs


@torch.no_grad()
def clip_fractions(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
) -> dict[str, Tensor]:
    """Which tokens' gradient the clip of `clipped_policy_loss` removes; their means are fractions.

    A ratio outside the bounds counts only where the advantage would push it further out, so all
    three are empty while the policy is the one that sampled. The dual clip is not counted.

    Args:
        logprobs: [B, T]
        old_logprobs: [B, T]
        advantages: [B] or [B, T]
        mask: [B, T] bool.
        clip_low: as in `clipped_policy_loss`.
        clip_high: as in `clipped_policy_loss`.

    Returns:
        [B, T] bool each, False where masked, to be averaged over the unmasked tokens of all
        microbatches: `clip_ratio/low_mean`, `clip_ratio/high_mean` and `clip_ratio/region_mean`,
        which is either.
    """
    ratio = policy_ratio(logprobs, old_logprobs, mask)
    return ratio_clip_fractions(ratio, advantages, mask, clip_low, clip_high)


@torch.no_grad()
def ratio_clip_fractions(
    ratio: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> dict[str, Tensor]:
    """`clip_fractions` for a ratio [B, T] that is given."""
    advantages = _per_token(advantages, mask)
    low = (ratio < 1 - clip_low) & (advantages < 0)
    high = (ratio > 1 + clip_high) & (advantages > 0)
    return {
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low | high,
    }


def validate_value_clip(clip: float | None) -> None:
    """Raise ValueError unless the clip is positive or None."""
    if clip is not None and not clip > 0:
        raise ValueError(f"--model.value_clip must be above 0, or unset for no clip (got {clip})")


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
