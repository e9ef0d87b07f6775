"""Means over unmasked tokens, and the aggregation of a per-token loss into one number.

A mask is bool and True where a value counts. Values at masked positions may be anything, nan and
inf included: they change neither a result nor a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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
    shift_mean: bool = True,
    global_sum: Callable[[Tensor], Tensor] = _one_rank,
) -> Tensor:
    """Scale the unmasked values to variance 1 (population variance), masked positions to 0.

    Args:
        values: [B, T]. Statistics are those of this tensor: pass a whole rollout.
        mask: [B, T] bool.
        eps: added to the variance.
        shift_mean: also move the mean to 0; otherwise it is kept.
        global_sum: turns this rank's part of a sum into the sum over all ranks.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    count = global_sum(mask.sum()).clamp(min=1)
    mean = global_sum(torch.where(mask, values, 0.0).sum()) / count
    centred = torch.where(mask, values - mean, 0.0)
    whitened = centred * torch.rsqrt(global_sum(centred.square().sum()) / count + eps)
    return whitened if shift_mean else torch.where(mask, whitened + mean, 0.0)


def _count_tokens(mask: Tensor) -> Tensor:
    return mask.sum()


def _count_rows(mask: Tensor) -> Tensor:
    return mask.any(dim=-1).sum()


def _sum_of_tokens(per_token: Tensor, mask: Tensor) -> Tensor:
    return per_token.sum()


def _sum_of_row_means(per_token: Tensor, mask: Tensor) -> Tensor:
    return (per_token.sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)).sum()


class _Aggregation(NamedTuple):
    count: Callable[[Tensor], Tensor]  # mask -> contribution to the denominator
    total: Callable[[Tensor, Tensor], Tensor]  # per_token with zeros where masked, mask -> sum
    by_token_budget: bool = False


_AGGREGATIONS = {
    "token-mean": _Aggregation(_count_tokens, _sum_of_tokens),
    "seq-mean-token-mean": _Aggregation(_count_rows, _sum_of_row_means),
    "seq-mean-token-sum": _Aggregation(_count_rows, _sum_of_tokens),
    "seq-mean-token-sum-norm": _Aggregation(_count_rows, _sum_of_tokens, by_token_budget=True),
}

AGGREGATION_MODES = tuple(_AGGREGATIONS)
"""`token-mean` (DAPO, arXiv:2503.14476), `seq-mean-token-mean` (GRPO, arXiv:2402.03300),
`seq-mean-token-sum`, and `seq-mean-token-sum-norm` (Dr. GRPO, arXiv:2503.20783), which divides the
token sum by the constant `max_completion_tokens`."""


def validate_aggregation(mode: str, max_completion_tokens: int | None = None) -> None:
    """Raise ValueError for an unknown mode, or one that lacks the token budget it divides by."""
    if mode not in _AGGREGATIONS:
        raise ValueError(
            f"--model.aggregation {mode!r} is unknown; choose one of {', '.join(AGGREGATION_MODES)}"
        )
    if _AGGREGATIONS[mode].by_token_budget and not (max_completion_tokens or 0) > 0:
        raise ValueError(
            f"--model.aggregation {mode} divides by the token budget of a completion: set "
            f"--model.max_completion_tokens to a positive number (got {max_completion_tokens})"
        )


def aggregation_count(mask: Tensor, mode: str) -> Tensor:
    """What one part of the batch contributes to the global denominator of `aggregate`.

    Args:
        mask: [B, T] bool.
        mode: one of `AGGREGATION_MODES`.

    Returns:
        [] int64: unmasked tokens for `token-mean`, rows with at least one unmasked token for the
        `seq-` modes. Sum it over the microbatches and ranks of one optimizer step.
    """
    if mode not in _AGGREGATIONS:
        validate_aggregation(mode)
    return _AGGREGATIONS[mode].count(mask)


def aggregate(
    per_token: Tensor,
    mask: Tensor,
    *,
    mode: str,
    denominator: Tensor,
    max_completion_tokens: int | None = None,
) -> Tensor:
    """This part's share of the loss of one optimizer step.

    The shares of all microbatches and ranks *sum* to the loss of the whole batch, and so do their
    gradients; whatever averages over ranks or accumulated batches later has to be undone.

    Args:
        per_token: [B, T] unreduced loss.
        mask: [B, T] bool.
        mode: one of `AGGREGATION_MODES`.
        denominator: [] sum of `aggregation_count` over all parts. Where it is 0 nothing is
            unmasked anywhere and the result is 0.
        max_completion_tokens: token budget of a completion; `seq-mean-token-sum-norm` needs it and
            the other modes ignore it.

    Raises:
        ValueError: unknown mode, or no `max_completion_tokens` where the mode needs it.
    """
    validate_aggregation(mode, max_completion_tokens)
    aggregation = _AGGREGATIONS[mode]
    total = aggregation.total(torch.where(mask, per_token, 0.0), mask)
    if aggregation.by_token_budget:
        assert max_completion_tokens is not None
        total = total / max_completion_tokens
    return total / torch.where(denominator == 0, 1, denominator)
