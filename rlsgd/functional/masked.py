"""Means over unmasked tokens.

A mask is bool and True where a value counts. Values at masked positions may be anything, nan and
inf included: they change neither a result nor a gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the unmasked values, in float32 or better.

    Args:
        values: any shape; bool values give the unmasked fraction that is True.
        mask: bool, same shape as `values`.
        dim: reduce only this dimension; None reduces all.

    Returns:
        The mean, and 0 where nothing is unmasked: rows without a counted token occur.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return torch.where(mask, values, 0.0).sum(dim) / mask.sum(dim).clamp(min=1)


def _one_rank(part: Tensor) -> Tensor:
    return part


def masked_whiten(
    values: Tensor,
    mask: Tensor,
    *,
    eps: float = 1e-8,
    global_sum: Callable[[Tensor], Tensor] = _one_rank,
) -> Tensor:
    """Move the unmasked values to mean 0, variance 1 (of the population), masked ones to 0.

    Args:
        values: [B, T]. Statistics are those of this tensor: pass a whole rollout.
        mask: [B, T] bool.
        eps: added to the variance.
        global_sum: turns this rank's part of a sum into the sum over all ranks.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    count = global_sum(mask.sum()).clamp(min=1)
    mean = global_sum(torch.where(mask, values, 0.0).sum()) / count
    centred = torch.where(mask, values - mean, 0.0)
    return centred * torch.rsqrt(global_sum(centred.square().sum()) / count + eps)


def taken(values: Tensor, mask: Tensor) -> Tensor:
    """values[mask], [b, t, ...] -> [S, ...], for a mask [b, t] on the CPU."""
    index = mask.flatten().nonzero().squeeze(1).to(values.device, non_blocking=True)
    return values.flatten(0, 1)[index]
