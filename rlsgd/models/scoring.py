"""Log-probabilities of completions under a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsgd.core.types import Rollouts
from rlsgd.functional.head_logprobs import head_logprobs
from rlsgd.functional.logprobs import token_entropy, token_logprobs
from rlsgd.models.shared_prompts import pack, shares_prompts


def completion_logprobs(
    model: PreTrainedModel,
    batch: Rollouts,
    *,
    temperature: float,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the completion tokens under `model` at `temperature`.

    The head sees the positions that predict a completion token and no others, and their logits
    exist for a chunk of tokens at a time, see `head_logprobs`. Position ids count real tokens, so
    padding on either side changes nothing. A model that shares prompts (`share_prompts`) computes
    each prompt of the batch once.

    Returns:
        logprobs [B, T], 0 outside the completion mask and in column 0; and the entropy [B, T]
        likewise, or None. The entropy has a gradient only with `entropy_gradient`.
    """
    scored = batch.completion_mask.clone()
    scored[:, 0] = False  # nothing predicts it
    targets = batch.input_ids[scored]  # [S]

    def score(inputs: Tensor, head: nn.Module | None = None) -> Tensor:
        entropy = None
        if head is None:
            logprobs = token_logprobs(inputs, targets, temperature=temperature)
            if with_entropy:
                entropy = token_entropy(inputs, temperature=temperature)
        else:
            weight: Any = head.weight
            bias: Any = head.bias
            logprobs, entropy = head_logprobs(
                inputs,
                weight,
                targets,
                bias=bias,
                temperature=temperature,
                with_entropy=with_entropy,
            )
        if entropy is None:
            return logprobs[None]
        return torch.stack([logprobs, entropy if entropy_gradient else entropy.detach()])

    if shares_prompts(model) and batch.position_ids is None and len(targets):
        packed = pack(batch, scored)
        values = _scores(model, lambda predictors: predictors[0], score, **packed)
    else:
        values = _scores_row_by_row(model, batch, scored, score)

    def spread(row: Tensor) -> Tensor:
        return row.new_zeros(scored.shape).masked_scatter(scored, row)

    if not with_entropy:
        return spread(values[0]), None
    return spread(values[0]), spread(values[1] if entropy_gradient else values[1].detach())


def _scores_row_by_row(
    model: PreTrainedModel, batch: Rollouts, scored: Tensor, score: Callable[..., Tensor]
) -> Tensor:
    """Every completion after a prompt of its own.

    Where the batch has position ids of its own, each document of a row sees itself alone: without
    a padding mask, transformers takes positions that restart for documents to be kept apart.
    """
    columns = scored[:, 1:].any(0).nonzero().squeeze(1)  # [K] positions that predict some token
    width = int(columns[-1]) + 1 if len(columns) else 1  # what comes later predicts nothing
    positions, padding = batch.position_ids, None
    if positions is None:
        padding = batch.attention_mask.long()
        positions = (padding.cumsum(1) - 1).clamp(min=0)
        padding = padding[:, :width]
    kept = scored[:, columns + 1]
    return _scores(
        model,
        lambda predictors: predictors[kept],
        score,
        input_ids=batch.input_ids[:, :width],
        attention_mask=padding,
        position_ids=positions[:, :width],
        logits_to_keep=columns,
    )


def _scores(
    model: PreTrainedModel,
    select: Callable[[Tensor], Tensor],
    score: Callable[..., Tensor],
    **inputs: Any,
) -> Tensor:
    """Scores [.., S] of the positions that `select` takes from [b, k, ...]."""
    if not has_plain_head(model):
        return score(select(model(**inputs, use_cache=False).logits))
    head = model.get_output_embeddings()
    # From inside the model's forward, where a sharded head is whole, and out of it as its logits,
    # on whose gradient FSDP waits.
    assert head is not None
    with _computing(head, lambda hidden: score(select(hidden), head)):
        return model(**inputs, use_cache=False).logits


_PLAIN_HEADS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are what a linear head computes, neither capped nor scaled afterwards.

    Found out by one forward pass of one token, in which the head says numbers that are known.
    """
    if model not in _PLAIN_HEADS:
        head = model.get_output_embeddings()
        _PLAIN_HEADS[model] = isinstance(head, nn.Linear) and _passes_on(model, head)
    return _PLAIN_HEADS[model]


def _passes_on(model: PreTrainedModel, head: nn.Linear) -> bool:
    weight = head.weight
    said = torch.linspace(-99.0, 99.0, len(weight), device=weight.device)[None, None]
    token = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
    with torch.no_grad(), _computing(head, lambda hidden: said):
        return torch.equal(model(input_ids=token, use_cache=False).logits, said)


@contextmanager
def _computing(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While inside, calling the head calls `forward`."""
    own = head.__dict__.get("forward")
    head.forward = forward
    try:
        yield
    finally:
        del head.forward
        if own is not None:
            head.forward = own
