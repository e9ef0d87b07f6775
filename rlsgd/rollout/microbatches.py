"""Microbatches of a rollout: which rows they have, and what a model says of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.models import completion_logprobs
from rlsgd.types import Rollouts


def split_rows(
    num_rows: int, *, minibatches: int, microbatches: int, seed: int
) -> list[list[Tensor]]:
    """Row indices of the microbatches of each minibatch of one inner epoch.

    In order if there is one minibatch, else shuffled, so that the completions of a prompt meet
    different ones in each inner epoch.
    """
    order = torch.arange(num_rows)
    if minibatches > 1:
        order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    return [list(rows.tensor_split(microbatches)) for rows in order.chunk(minibatches)]


def by_microbatch(
    score: Callable[[Rollouts], tuple[Tensor, ...]],
    rollouts: Rollouts,
    minibatch_rows: list[list[Tensor]],
) -> tuple[Tensor, ...]:
    """Score a whole rollout in the very microbatches that an inner epoch updates from.

    Equal shapes round equally, so that the first ratio of training is exactly 1.

    Args:
        score: [b, t] tensors of a trimmed microbatch.
        rollouts: B completions.
        minibatch_rows: as from `split_rows`.

    Returns:
        As many [B, T] tensors, 0 where masked.
    """
    mask = rollouts.completion_mask
    results: list[Tensor] = []
    for rows in (rows for microbatches in minibatch_rows for rows in microbatches):
        batch = rollouts.select(rows).trim()
        rows = rows.to(mask.device)
        scored = score(batch)
        results = results or [value.new_zeros(mask.shape) for value in scored]
        for result, value in zip(results, scored, strict=True):
            block = value.new_zeros(len(rows), mask.shape[1])
            block[mask[rows]] = value[batch.completion_mask]
            result[rows] = block
    return tuple(results)


def rollout_logprobs(
    model: PreTrainedModel,
    rollouts: Rollouts,
    minibatch_rows: list[list[Tensor]],
    *,
    temperature: float,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`completion_logprobs` of a whole rollout: log-probabilities and entropy or None, [B, T]."""

    def score(batch: Rollouts) -> tuple[Tensor, ...]:
        logprobs, entropy = completion_logprobs(
            model, batch, temperature=temperature, with_entropy=with_entropy
        )
        return (logprobs,) if entropy is None else (logprobs, entropy)

    logprobs, *entropy = by_microbatch(score, rollouts, minibatch_rows)
    return logprobs, entropy[0] if with_entropy else None
