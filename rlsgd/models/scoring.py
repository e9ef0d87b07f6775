"""Log-probabilities of completions under a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsgd.core.types import TokenBatch
from rlsgd.functional.head_logprobs import head_logprobs
from rlsgd.functional.logprobs import token_entropy, token_logprobs
from rlsgd.functional.masked import taken
from rlsgd.models.calling import accepts, call
from rlsgd.models.fast_paths import choose, fast_path, require
from rlsgd.models.no_forward import no_scores
from rlsgd.models.onednn import ONEDNN, uses_onednn
from rlsgd.models.plain_head import OWN_HEAD, computing, has_plain_head
from rlsgd.models.recomputing import RECOMPUTED, recomputes
from rlsgd.models.shared_prompts import SHARED, pack, shares_prompts

PADDED, ALIGNED = "scoring rows padded on the left", "scoring rows padded on the right"
DOCUMENTS = "scoring documents in one row"
LAYOUTS = {
    PADDED: "",
    ALIGNED: "its rows are moved to the left for scoring",
}


@dataclass(frozen=True)
class Way:
    """How a batch is scored.

    Args:
        own_head: `head_logprobs` computes the head, not the model.
        shared: each prompt of the batch is computed once.
        aligned: rows are moved to the left, so that all padding is on the right.
    """

    own_head: bool = False
    shared: bool = False
    aligned: bool = False


def completion_logprobs(
    model: PreTrainedModel,
    batch: TokenBatch,
    *,
    temperature: float,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the completion tokens under `model` at `temperature`.

    The head sees the positions that predict a completion token and no others, and their logits
    exist for a chunk of tokens at a time, see `head_logprobs`. Position ids count real tokens, so
    padding on either side changes nothing. A model that shares prompts (`share_prompts`) computes
    each prompt of the batch once. All of this is tried out on the model before it is used, see
    `rlsgd.models.fast_paths`.

    Returns:
        logprobs [B, T], 0 outside the completion mask and in column 0; and the entropy [B, T]
        likewise, or None. The entropy has a gradient only with `entropy_gradient`.

    Raises:
        ValueError: the model cannot score rows of a batch.
    """
    if not len(batch):
        return no_scores(model, batch)
    scored = _scored(batch)
    values = score_tokens(
        model,
        batch,
        way_of(model, batch),
        temperature=temperature,
        with_entropy=with_entropy,
        entropy_gradient=entropy_gradient,
    )

    def spread(row: Tensor) -> Tensor:
        return row.new_zeros(scored.shape).masked_scatter(scored, row)

    if not with_entropy:
        return spread(values[0]), None
    return spread(values[0]), spread(values[1] if entropy_gradient else values[1].detach())


def way_of(model: PreTrainedModel, batch: TokenBatch) -> Way:
    """How to score a batch: every part of it proven on this model for rows of this length.

    Raises:
        ValueError: padding, documents or shared prompts change the model's numbers.
    """
    length = batch.input_ids.shape[1]
    layout = scoring_layout(model, length) if batch.position_ids is None else PADDED
    own_head = has_plain_head(model)
    if recomputes(model):
        flag, fix = "--model.activation_checkpointing true", "set it to false"
        require(model, RECOMPUTED, flag=flag, fix=fix, length=length)
    if batch.position_ids is not None:
        fix = "let every row hold one document"
        require(model, DOCUMENTS, flag="--data", fix=fix, length=length)
        return Way(own_head)
    if shares_prompts(model):
        flag, fix = "--model.share_prompts true", "set it to false"
        require(model, SHARED, flag=flag, fix=fix, length=length)
        return Way(own_head, shared=True)
    return Way(own_head, aligned=layout == ALIGNED)


def prove_scoring(model: PreTrainedModel, longest: int = 0) -> None:
    """Try out, for rows of up to `longest` tokens, what every batch will use: layout, head, flags.

    Raises:
        ValueError: the model computes one of them wrong.
    """
    has_plain_head(model)
    flags = {
        RECOMPUTED: ("--model.activation_checkpointing true", recomputes(model)),
        ONEDNN: ("--model.onednn true", uses_onednn(model)),
    }
    for length in (0, longest):
        for name, (flag, is_on) in flags.items():
            if is_on:
                require(model, name, flag=flag, fix="set it to false", length=length)
        scoring_layout(model, length)


def scoring_layout(model: PreTrainedModel, length: int) -> str:
    """`PADDED` or `ALIGNED`, whichever the model computes right for rows of this length."""
    fix = "a row's numbers depend on chance, on the others of its batch or on the mode of the model"
    return choose(model, LAYOUTS, flag="--model.policy", fix=fix, length=length)


def _scored(batch: TokenBatch) -> Tensor:
    scored = batch.completion_mask.clone()
    scored[:, 0] = False  # nothing predicts it
    return scored


def score_tokens(
    model: PreTrainedModel,
    batch: TokenBatch,
    way: Way,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
) -> Tensor:
    """Log-probabilities, and entropy if asked for, of the S scored tokens, row by row: [.., S]."""
    if way.aligned:
        batch = aligned(batch)
    scored = _scored(batch).cpu()  # here, so that no index asks the device how many it has
    targets = taken(batch.input_ids, scored)  # [S]

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

    if way.shared and len(targets):
        packed = pack(batch, scored)
        return _scores(model, way.own_head, lambda predictors: predictors[0], score, **packed)
    return _scores_row_by_row(model, batch, scored, way.own_head, score)


def aligned(batch: TokenBatch) -> TokenBatch:
    """The masks and token ids of a batch with every row moved to the left; padding is 0."""
    order = batch.attention_mask.long().argsort(dim=1, descending=True, stable=True)
    mask = batch.attention_mask.gather(1, order)
    return TokenBatch(
        input_ids=batch.input_ids.gather(1, order) * mask,
        attention_mask=mask,
        completion_mask=batch.completion_mask.gather(1, order),
    )


def _scores_row_by_row(
    model: PreTrainedModel,
    batch: TokenBatch,
    scored: Tensor,
    own_head: bool,
    score: Callable[..., Tensor],
) -> Tensor:
    """Every completion after a prompt of its own; `scored` [B, T] is on the CPU.

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
        own_head,
        lambda predictors: taken(predictors, kept),
        score,
        input_ids=batch.input_ids[:, :width],
        attention_mask=padding,
        position_ids=positions[:, :width],
        logits_to_keep=columns.to(batch.input_ids.device, non_blocking=True),
    )


def _scores(
    model: PreTrainedModel,
    own_head: bool,
    select: Callable[[Tensor], Tensor],
    score: Callable[..., Tensor],
    *,
    logits_to_keep: Tensor,
    layout: Any = None,
    **inputs: Any,
) -> Tensor:
    """Scores [.., S] of the positions that `select` takes from [b, k, ...]."""
    inputs["use_cache"] = False
    keeps_few = accepts(model, "logits_to_keep")
    if keeps_few:
        inputs["logits_to_keep"] = logits_to_keep

    def pick(predictors: Tensor) -> Tensor:
        return select(predictors if keeps_few else predictors[:, logits_to_keep])

    def run() -> Tensor:
        # a model that names no `layout` passes it on to its attention
        return (model(**inputs, layout=layout) if layout else call(model, **inputs)).logits

    if not own_head:
        return score(pick(run()))
    head = model.get_output_embeddings()
    # From inside the model's forward, where a sharded head is whole, and out of it as its logits,
    # on whose gradient FSDP waits.
    assert head is not None
    with computing(head, lambda hidden: score(pick(hidden), head)):
        return run()


@fast_path(PADDED)
def _padded(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    return score_tokens(model, batch, Way())[0]


@fast_path(ALIGNED)
def _aligned(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    return score_tokens(model, batch, Way(aligned=True))[0]


@fast_path(OWN_HEAD)
def _own_head(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    return score_tokens(model, aligned(batch), Way(own_head=True))[0]


@fast_path(SHARED)
def _shared(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    return score_tokens(model, batch, Way(shared=True))[0]


@fast_path(RECOMPUTED)
def _recomputed(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    return score_tokens(model, aligned(batch), Way())[0]


@fast_path(DOCUMENTS)
def _documents(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    rows = aligned(batch)
    real = rows.attention_mask
    positions = (real.long().cumsum(1) - 1)[real]
    packed = TokenBatch(
        input_ids=rows.input_ids[real][None],
        attention_mask=torch.ones_like(positions, dtype=torch.bool)[None],
        completion_mask=rows.completion_mask[real][None],
        position_ids=positions[None],
    )
    return score_tokens(model, packed, Way())[0]
