"""Log-probabilities straight from hidden states, without ever holding the logits of all tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from rlsgd.functional.logprobs import tempered

CPU_LOGITS_BYTES, DEVICE_LOGITS_BYTES = 1 << 25, 1 << 29
"""Logits that exist at a time. A GPU wants larger products: every chunk also reads and writes the
whole gradient of the head."""


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
    logits_bytes: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`token_logprobs` and `token_entropy` of the logits hidden @ weight.T + bias.

    The logits exist for a chunk of tokens at a time and are computed again in the backward, which
    costs one more product with the head; where one chunk holds them all, they are kept. Under
    autocast the products are in its dtype, the rest in float32, as elsewhere.

    Args:
        hidden: [N, H] of the tokens that predict the targets.
        weight: [V, H] of the language model's head.
        targets: [N] long.
        bias: [V], or none.
        temperature: softmax temperature.
        with_entropy: also the entropy of each next token, with a gradient.
        logits_bytes: most of them at a time, in float32; none chooses by the device.

    Returns:
        [N] log-probabilities and [N] entropy or None, in nats, in float32 (float64 for float64).
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    chunk = tokens_at_a_time(len(weight), device, logits_bytes)
    logprobs, entropy = _HeadLogprobs.apply(  # pyright: ignore[reportGeneralTypeIssues]
        hidden, weight, bias, targets, temperature, with_entropy, chunk
    )
    return logprobs, entropy


def tokens_at_a_time(vocabulary: int, device: str, logits_bytes: int | None = None) -> int:
    """Tokens whose logits exist together, see `head_logprobs`."""
    if logits_bytes is None:
        logits_bytes = CPU_LOGITS_BYTES if device == "cpu" else DEVICE_LOGITS_BYTES
    return max(1, logits_bytes // (4 * vocabulary))


class _HeadLogprobs(torch.autograd.Function):
    """With z the tempered logits, p their softmax and H the entropy:

    d logprob / d z_j = [j = target] - p_j,  d H / d z_j = -p_j (log p_j + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, normalizer = hidden.new_empty((2, len(targets)), dtype=dtype)
        entropy = torch.empty_like(logprobs) if with_entropy else None
        kept = None
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(len(targets), chunk):
                logits = tempered(linear(hidden[rows], weight, bias), temperature)
                normalizer[rows] = logits.logsumexp(1)
                logprobs[rows] = logits.gather(1, targets[rows, None]).squeeze(1) - normalizer[rows]
                if entropy is not None:
                    entropy[rows] = _entropy(logits, normalizer[rows])
                kept = logits if len(targets) <= chunk else None
                del logits  # before the next chunk's
        ctx.save_for_backward(hidden, weight, bias, targets, normalizer, entropy, kept)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)  # an entropy that is only logged costs no gradient
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, targets, normalizer, entropy, kept = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        # Sums over chunks, so in float32 at least, as inside a product.
        wide = normalizer.dtype
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if for_bias else None
        for rows in _chunks(len(targets), ctx.chunk):
            logits = kept
            if logits is None:
                logits = tempered(linear(hidden[rows], weight, bias), ctx.temperature)
            grad = _logits_gradient(
                logits,
                normalizer[rows],
                targets[rows],
                None if grad_logprobs is None else grad_logprobs[rows],
                None if grad_entropy is None else (grad_entropy[rows], entropy[rows]),
            )
            del logits
            grad = grad.div_(ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ weight
            if grad_weight is not None:
                _add_product_(grad_weight, grad.mT, hidden[rows])
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=wide)
            del grad
        return (
            grad_hidden,
            grad_weight if grad_weight is None else grad_weight.to(weight.dtype),
            grad_bias if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 4,
        )


def _chunks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, start + size)


def _entropy(logits: Tensor, normalizer: Tensor) -> Tensor:
    p = (logits - normalizer[:, None]).exp_()
    return torch.special.entr(p, out=p).sum(1)


def _logits_gradient(
    logits: Tensor,
    normalizer: Tensor,
    targets: Tensor,
    of_logprobs: Tensor | None,
    of_entropy: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Gradient [n, V], given those of the log-probabilities, and of the entropy with its value."""
    p = (logits - normalizer[:, None]).exp_()
    slope = None
    if of_entropy is not None:
        grad, entropy = of_entropy
        slope = (logits - (normalizer - entropy)[:, None]).mul_(p)
        # An impossible token contributes 0 * -inf, whose limit is 0.
        slope = slope.nan_to_num_(0.0).mul_(-grad[:, None])
    if of_logprobs is None:
        assert slope is not None
        return slope
    p.mul_(-of_logprobs[:, None]).scatter_add_(1, targets[:, None], of_logprobs[:, None])
    return p if slope is None else p.add_(slope)


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)  # without a second matrix of the size of the head
    else:
        total += left @ right
