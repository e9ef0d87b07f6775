"""The tempered policy softmax(logits / temperature): draws, log-probabilities, entropy, ratio."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256  # tokens whose probability is added up before one of them is looked for


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature in float32 or better; the very tensor where that changes nothing."""
    if not temperature > 0:
        raise ValueError(
            f"temperature must be above 0 to score tokens (got {temperature}); "
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


def draw_tokens(logits: Tensor, uniforms: Tensor, *, temperature: float = 1.0) -> Tensor:
    """A token of each row by inverting its cumulative distribution, one uniform number a row.

    Sums are taken in float64, of blocks and then inside the block that was hit, so that rare tokens
    of a large vocabulary keep their probability and no cumulative [b, V] tensor is made. A token of
    probability 0 is never drawn.

    Args:
        logits: [b, V], any floating dtype; -inf marks an impossible token.
        uniforms: [b] float64 in [0, 1).
        temperature: softmax temperature.

    Returns:
        [b] long.
    """
    return drawn(tempered(logits, temperature).softmax(-1), uniforms)


def draw_with_entropy(
    logits: Tensor, uniforms: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`draw_tokens`, and `token_entropy` [b] from the same softmax: one more pass, not four."""
    logits = tempered(logits, temperature)
    probabilities = logits.softmax(-1)
    # an impossible token would add 0 * -inf
    finite = logits.clamp(min=torch.finfo(logits.dtype).min)
    entropy = torch.bmm(probabilities[:, None], finite[:, :, None]).flatten()
    del finite
    # minus the log-normalizer, by the likeliest token, whose probability is not 0
    probability, likeliest = probabilities.max(-1)
    entropy = logits.gather(1, likeliest[:, None])[:, 0] - probability.log() - entropy
    del logits  # as large as what drawing needs
    return drawn(probabilities, uniforms), entropy


def drawn(weights: Tensor, uniforms: Tensor) -> Tensor:
    """A token [b] of each row of probabilities [b, V]; see `draw_tokens`."""
    vocabulary = weights.shape[1]
    blocks, rest = divmod(vocabulary, BLOCK)
    wide = {"dim": -1, "dtype": torch.float64}
    sums = weights[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)).sum(**wide)
    if rest:  # a last block that is not full
        sums = torch.cat([sums, weights[:, -rest:].sum(**wide, keepdim=True)], 1)
    sums = sums.cumsum(-1)
    target = uniforms[:, None] * sums[:, -1:]
    block = _first_above(sums, target)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(1, block)
    tokens = block * BLOCK + torch.arange(BLOCK, device=block.device)
    inside = weights.gather(1, tokens.clamp(max=vocabulary - 1)) * (tokens < vocabulary)
    token = _first_above(inside.cumsum(-1, dtype=torch.float64), target - before)
    return (block * BLOCK + token).squeeze(1)


def _first_above(sums: Tensor, target: Tensor) -> Tensor:
    """Index [b, 1] of the first of the cumulative sums [b, N] that exceeds the target [b, 1].

    Where rounding has the target reach the last sum, it is the last index at which the sums rose.
    """
    last = (sums < sums[:, -1:]).sum(-1, keepdim=True)
    return torch.searchsorted(sums, target, right=True).minimum(last)
