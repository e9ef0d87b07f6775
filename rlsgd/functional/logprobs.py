"""Log-probabilities, entropy and ratio of the tempered policy softmax(logits / temperature)."""

from __future__ import annotations

import torch
from torch import Tensor


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature in float32 or better; the very tensor where that changes nothing."""
    if not temperature > 0:
        raise ValueError(
            f"--model.temperature must be above 0 to score tokens (got {temperature}); "
            "a greedy policy has no log-probabilities"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits / temperature


def token_logprobs(logits: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of each target token. No second [..., V] tensor is kept for the backward.

    Args:
        logits: [..., V], any floating dtype.
        targets: [...] long.
        temperature: softmax temperature; the one the completions were sampled with.

    Returns:
        [...] float32 (float64 for float64 logits), in nats.
    """
    logits = tempered(logits, temperature)
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return picked - logits.logsumexp(dim=-1)


def token_entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy of the distribution of each next token.

    Args:
        logits: [..., V], any floating dtype; -inf marks an impossible token.
        temperature: softmax temperature.

    Returns:
        [...] float32 (float64 for float64 logits), in nats, between 0 and log V.
    """
    logprobs = tempered(logits, temperature).log_softmax(dim=-1)
    # An impossible token contributes 0 * -inf, whose limit is 0.
    finite = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)
    return -(logprobs.exp() * finite).sum(dim=-1)


def policy_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """exp(logprobs - old_logprobs), and 1 without gradient where masked. [B, T] -> [B, T]"""
    # Masked before exp: the gradient of an overflow there would be 0 * inf.
    return torch.where(mask, logprobs - old_logprobs, 0.0).exp()
