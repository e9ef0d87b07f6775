"""Correction for completions sampled by another engine than the one that trains.

The sampler's log-probabilities differ from the trainer's for the same weights: other kernels, other
precision. The gradient is then off-policy by the ratio w = exp(old_logprobs - sampler_logprobs):

| correction          | weight of a token                 | rejected                             |
|---------------------|-----------------------------------|--------------------------------------|
| `token-truncate`    | min(w_t, high)                    | none                                 |
| `token-mask`        | w_t                               | tokens with w_t outside [low, high]  |
| `sequence-truncate` | min(W, high), W the product of w  | none                                 |
| `sequence-mask`     | W                                 | completions with W outside [low, high] |

Truncation is TIS (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy
training", high 2); the token mask is IcePop (Ling Team 2025, low 0.5 and high 5).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from rlsgd.functional.logprobs import policy_ratio
from rlsgd.functional.losses import sequence_ratio

Correction = Literal["token-truncate", "token-mask", "sequence-truncate", "sequence-mask"]
CORRECTIONS: tuple[Correction, ...] = get_args(Correction)


def validate_correction(correction: Correction) -> None:
    """Raise ValueError for a name that is not in `CORRECTIONS`."""
    if correction not in CORRECTIONS:
        raise ValueError(
            f"correction {correction!r} is unknown; choose one of {', '.join(CORRECTIONS)}"
        )


def validate_bounds(low: float, high: float) -> None:
    """Raise ValueError for bounds that do not enclose 1."""
    if not 0 <= low <= 1 <= high:
        raise ValueError(
            f"low {low} must be 0 to 1, and high {high} at least 1: they enclose 1, the ratio of a "
            "sampler that agrees"
        )


def correction_weights(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    *,
    correction: Correction,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor]:
    """Weights of the policy gradient, and which tokens are kept.

    Args:
        old_logprobs: [B, T] of the trainer's policy at rollout time.
        sampler_logprobs: [B, T] of the sampler.
        mask: [B, T] bool.
        correction: one of `CORRECTIONS`.
        low: the mask's lower bound; truncation has none.
        high: upper bound.

    Returns:
        weights [B, T], 1 where masked; and kept [B, T] bool, a part of `mask`. Rejected tokens
        belong neither in the loss nor in its denominator.
    """
    validate_correction(correction)
    validate_bounds(low, high)
    level, action = correction.split("-")
    if level == "token":
        ratio = policy_ratio(old_logprobs, sampler_logprobs, mask)
    else:
        ratio = sequence_ratio(old_logprobs, sampler_logprobs, mask, length_normalized=False)
    if action == "truncate":
        return ratio.clamp(max=high), mask
    kept = mask & (ratio >= low) & (ratio <= high)
    return torch.where(kept, ratio, 1.0), kept


def mismatch_metrics(log_ratio: Tensor) -> dict[str, Tensor]:
    """How far sampler and trainer disagree, before any correction.

    Args:
        log_ratio: [N] old_logprobs - sampler_logprobs of the tokens of a rollout.

    Returns:
        Under the names that TRL uses: mean and max of the absolute difference, and min, mean and
        max of the token ratio. `sampling/kl` is the k3 estimate of KL(sampler || policy) in nats,
        `sampling/effective_sample_size` is (sum of ratios)^2 / (N * sum of squares), in (0, 1].
    """
    ratio = log_ratio.exp()
    size = ratio.sum().square() / (len(ratio) * ratio.square().sum())
    return {
        "sampling/sampling_logp_difference/mean": log_ratio.abs().mean(),
        "sampling/sampling_logp_difference/max": log_ratio.abs().max(),
        "sampling/importance_sampling_ratio/min": ratio.min(),
        "sampling/importance_sampling_ratio/mean": ratio.mean(),
        "sampling/importance_sampling_ratio/max": ratio.max(),
        "sampling/kl": (log_ratio.expm1() - log_ratio).mean(),
        "sampling/effective_sample_size": size,
    }


def require_agreement(log_ratio: Tensor, tolerance: float) -> None:
    """Refuse a sampler that seems to serve other weights than the trainer's.

    Args:
        log_ratio: [N] old_logprobs - sampler_logprobs of the tokens of a rollout.
        tolerance: largest mean of its absolute value, in nats.

    Raises:
        ValueError: it is larger.
    """
    difference = float(log_ratio.abs().mean()) if len(log_ratio) else 0.0
    if difference > tolerance:
        raise ValueError(
            f"tolerance {tolerance}: sampler and trainer differ by {difference:.3g} nats "
            "a token on average, so the sampler seems to serve other weights than the trainer's. "
            "If it only computes in a coarser dtype, raise the tolerance and consider a correction"
        )
