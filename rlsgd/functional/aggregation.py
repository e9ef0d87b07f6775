"""The aggregation of a per-token loss into one number, whatever the microbatches and ranks.

A mask is bool and True where a value counts; values at masked positions may be anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor


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


Aggregation = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
]
"""`token-mean` (DAPO, arXiv:2503.14476), `seq-mean-token-mean` (GRPO, arXiv:2402.03300),
`seq-mean-token-sum`, and `seq-mean-token-sum-norm` (Dr. GRPO, arXiv:2503.20783), which divides the
token sum by the constant `max_completion_tokens`."""

AGGREGATION_MODES: tuple[Aggregation, ...] = get_args(Aggregation)

_AGGREGATIONS: dict[str, _Aggregation] = {
    "token-mean": _Aggregation(_count_tokens, _sum_of_tokens),
    "seq-mean-token-mean": _Aggregation(_count_rows, _sum_of_row_means),
    "seq-mean-token-sum": _Aggregation(_count_rows, _sum_of_tokens),
    "seq-mean-token-sum-norm": _Aggregation(_count_rows, _sum_of_tokens, by_token_budget=True),
}


def validate_aggregation(
    aggregation: Aggregation, max_completion_tokens: int | None = None
) -> None:
    """Raise ValueError for an unknown mode, or one that lacks the token budget it divides by."""
    if aggregation not in _AGGREGATIONS:
        raise ValueError(
            f"aggregation {aggregation!r} is unknown; choose one of {', '.join(AGGREGATION_MODES)}"
        )
    if _AGGREGATIONS[aggregation].by_token_budget and not (max_completion_tokens or 0) > 0:
        raise ValueError(
            f"aggregation {aggregation} divides by the token budget of a completion: set "
            f"max_completion_tokens to a positive number (got {max_completion_tokens})"
        )


def aggregation_count(mask: Tensor, mode: Aggregation) -> Tensor:
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
    mode: Aggregation,
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
