"""Microbatches of a rollout: which rows they have, and what a model says of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.core.distributed import global_max, process_number
from rlsgd.core.types import TokenBatch
from rlsgd.models.scoring import completion_logprobs


def split_rows(
    costs: Tensor, *, minibatches: int, microbatches: int, seed: int, together: int = 1
) -> list[list[Tensor]]:
    """Row indices of the microbatches of each minibatch of one inner epoch.

    In order if there is one minibatch, else drawn at random, so that the completions of a prompt
    meet different ones in each inner epoch. A minibatch's rows fill its microbatches up to the
    smallest budget of tokens that this number of microbatches allows.

    Args:
        costs: [B] long, tokens that each row adds.
        minibatches: parts of the inner epoch, equal in rows.
        microbatches: parts of each minibatch; at least one row each.
        seed: of the draw.
        together: rows, from the first on, that stay in one microbatch where that is possible.
    """
    order = torch.arange(len(costs))
    if minibatches > 1:
        order = torch.randperm(len(costs), generator=torch.Generator().manual_seed(seed))
        together = 1  # the draw has parted them
    result = []
    for rows in order.chunk(minibatches):
        size = together if len(rows) >= together * microbatches else 1
        units = list(rows.sort().values.split(size))
        parts = fill([int(costs[unit].sum()) for unit in units], microbatches)
        result.append([torch.cat(units[part]) for part in parts])
    return result


def without_idle(
    microbatches: list[Tensor], idle: Tensor, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Rows that are computed, and rows left out, of each microbatch of a minibatch.

    Ranks compute the same microbatches: where others have rows left, a rank that has none computes
    one that is idle. Those without rows come first, since gradients that were accumulated are
    reduced in the backward pass of the last one. Every rank must call.

    Args:
        microbatches: row indices.
        idle: [B] bool, on the CPU, rows that add nothing to the loss.
        device: of the collective.
    """
    busy = [rows[~idle[rows]] for rows in microbatches]
    lengths = torch.tensor([len(rows) for rows in busy])
    most = (lengths if process_number()[1] == 1 else global_max(lengths.to(device))).tolist()
    parts = []
    for rows, computed, needed in zip(microbatches, busy, most, strict=True):
        if needed and not len(computed):
            computed = rows[:1]
        parts.append((computed, rows[~torch.isin(rows, computed)]))
    return sorted(parts, key=lambda part: len(part[0]) > 0)


def computed_tokens(rollouts: TokenBatch, group_size: int) -> Tensor:
    """Tokens [B] that each row adds; its prompt is added by the first of `group_size` rows."""
    counts = [mask.sum(1) for mask in (rollouts.attention_mask, rollouts.completion_mask)]
    tokens, completions = torch.stack(counts).cpu()
    sharing = torch.arange(len(tokens)) % group_size != 0
    prompts = tokens - completions
    return torch.where(sharing, tokens - prompts, tokens)


def fill(costs: list[int], parts: int) -> list[slice]:
    """Neighbours into `parts` parts, none empty, so that the largest sum is as small as can be."""
    low, high = max(costs), sum(costs)
    while low < high:
        budget = (low + high) // 2
        if len(_filled(costs, budget, 1)) <= parts:
            high = budget
        else:
            low = budget + 1
    return _filled(costs, low, parts)


def _filled(costs: list[int], budget: int, parts: int) -> list[slice]:
    """Parts of at most the budget, at least `parts` of them."""
    starts, total = [0], 0
    for index, cost in enumerate(costs):
        needs_the_rest = len(costs) - index <= parts - len(starts)
        if index and (total + cost > budget or needs_the_rest):
            starts.append(index)
            total = 0
        total += cost
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(costs)], strict=True)]


def by_microbatch(
    score: Callable[[TokenBatch], tuple[Tensor, ...]],
    rollouts: TokenBatch,
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
    rollouts: TokenBatch,
    minibatch_rows: list[list[Tensor]],
    *,
    temperature: float,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`completion_logprobs` of a whole rollout: log-probabilities and entropy or None, [B, T]."""

    def score(batch: TokenBatch) -> tuple[Tensor, ...]:
        logprobs, entropy = completion_logprobs(
            model, batch, temperature=temperature, with_entropy=with_entropy
        )
        return (logprobs,) if entropy is None else (logprobs, entropy)

    logprobs, *entropy = by_microbatch(score, rollouts, minibatch_rows)
    return logprobs, entropy[0] if with_entropy else None
