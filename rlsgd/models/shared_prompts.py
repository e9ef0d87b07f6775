"""The completions of a prompt share it: one forward and backward through it for all of them.

A batch becomes one sequence without padding: every prompt once, then every completion. All that a
model does token by token is done on that sequence. In attention a prompt sees itself, and a
completion its prompt and itself, at the positions that it has in a row of its own. The numbers are
those of separate rows but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlsgd.core.types import TokenBatch
from rlsgd.models.calling import class_name

NAME = "shared_prompts"
SHARED = "sharing prompts"  # in the registry of rlsgd.models.fast_paths
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")  # arguments of attention


def share_prompts(model: PreTrainedModel) -> None:
    """Let `completion_logprobs` compute each prompt of a batch once with this model.

    Everywhere else its attention stays torch's scaled dot product. A second call changes nothing.
    Whether the model passes what it needs on to its attention shows when it is tried out.

    Raises:
        ValueError: its attention is of a kind that this cannot do.
    """
    if shares_prompts(model):
        return
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    implementation = model.config._attn_implementation
    if implementation != "sdpa" or kinds != {"full_attention"}:
        raise ValueError(
            f"--model.share_prompts true: {class_name(model)} has attention {implementation} of "
            f"{', '.join(sorted(kinds))}; only sdpa of full_attention is supported. Set it to false"
        )
    model.set_attn_implementation(NAME)


def unshare_prompts(model: PreTrainedModel) -> None:
    """Undo `share_prompts`."""
    if shares_prompts(model):
        model.set_attn_implementation("sdpa")


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether `share_prompts` was called on the model."""
    return getattr(model.config, "_attn_implementation", None) == NAME


@dataclass(frozen=True)
class Layout:
    """Where the tokens of the one sequence are in padded rows, for attention.

    Args:
        prompts: the n prompts' tokens, in rows of P.
        completions: the b completions' tokens, in rows of C.
        prompt_of: [b] each completion's prompt.
        mask: [b, 1, C, P + C] what a completion's token sees.
    """

    prompts: Slots
    completions: Slots
    prompt_of: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Slots:
    """Places of N tokens in `rows` rows of `width`, each row filled from the left.

    Args:
        tokens: N.
        index: [N] into the rows one after the other; None where the tokens fill every place.
    """

    rows: int
    width: int
    tokens: int
    index: Tensor | None

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> Slots:
        width = int(lengths.max()) if len(lengths) else 0
        filled = torch.arange(width) < lengths[:, None]
        index = None if filled.all() else _sent(filled.flatten().nonzero().squeeze(1), device)
        return cls(len(lengths), width, int(lengths.sum()), index)

    def pad(self, tokens: Tensor) -> Tensor:
        """[N, ...] into [rows, width, ...], 0 elsewhere."""
        if self.index is not None:
            tokens = _Place.apply(tokens, self.index, self.rows * self.width)
        return tokens.unflatten(0, (self.rows, self.width))

    def unpad(self, rows: Tensor) -> Tensor:
        """[rows, width, ...] into [N, ...]."""
        rows = rows.flatten(0, 1)
        return rows if self.index is None else _Take.apply(rows, self.index)


class _Place(torch.autograd.Function):
    """zeros[index] = tokens; autograd's own gradients would add, though no place is hit twice."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return tokens.new_zeros(size, *tokens.shape[1:]).index_copy_(0, index, tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.index_select(0, *ctx.saved_tensors), None, None


class _Take(torch.autograd.Function):
    """rows[index], the inverse of `_Place`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, index, grad), None


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def pack(batch: TokenBatch, scored: Tensor) -> dict[str, Any]:
    """A model's arguments for one sequence of all prompts and completions of a batch.

    A row's prompt is what comes before its first scored token. What comes after the token that
    predicts the last one is left out.

    Args:
        batch: its masks and `input_ids`.
        scored: [B, T] bool, on the CPU, the tokens to score; S in all, at least one.

    Returns:
        `input_ids` [1, N] and `position_ids` [1, N]; `logits_to_keep` [S], the positions that
        predict the scored tokens, row by row; `layout`; and an attention mask that only keeps
        transformers from making one.
    """
    device = batch.input_ids.device
    used = scored.any(1)
    here = torch.stack([batch.input_ids, batch.attention_mask.long()]).cpu()  # one wait
    ids, attended, wanted = here[0, used], here[1, used].bool(), scored[used]
    columns = torch.arange(wanted.shape[1])
    first = wanted.long().argmax(1, keepdim=True)
    last = wanted.shape[1] - 1 - wanted.flip(1).long().argmax(1, keepdim=True)
    before = attended & (columns < first)
    since = attended & (columns >= first)
    inside = since & (columns < last)

    assert before.any(1).all(), "a completion follows a prompt"
    _, prompt_of = torch.where(before, ids, -1).unique(dim=0, return_inverse=True)
    rows = torch.arange(len(ids))
    leaders = rows.new_zeros(int(prompt_of.max()) + 1)
    leaders = leaders.scatter_reduce_(0, prompt_of, rows, "amin", include_self=False)
    prompt_lengths, lengths = before[leaders].sum(1), inside.sum(1)
    own_prompt = prompt_lengths[prompt_of]

    rank = since.long().cumsum(1) - 1  # of each completion token in its completion
    input_ids = torch.cat([ids[leaders][before[leaders]], ids[inside]])
    prompt_rank = before[leaders].long().cumsum(1) - 1
    position_ids = torch.cat([prompt_rank[before[leaders]], (own_prompt[:, None] + rank)[inside]])
    prompt_end = prompt_lengths.cumsum(0)[prompt_of] - 1
    start = prompt_lengths.sum() + lengths.cumsum(0) - lengths
    predictors = torch.where(rank == 0, prompt_end[:, None], start[:, None] + rank - 1)[wanted]

    prompts, completions = Slots.of(prompt_lengths, device), Slots.of(lengths, device)
    size = completions.width
    sees_prompt = (torch.arange(prompts.width) < own_prompt[:, None])[:, None, None]
    sees_itself = torch.ones(size, size, dtype=torch.bool).tril().expand(len(ids), 1, -1, -1)
    mask = torch.cat([sees_prompt.expand(-1, -1, size, -1), sees_itself], 3)
    layout = Layout(prompts, completions, _sent(prompt_of, device), _sent(mask, device))
    return {
        "input_ids": _sent(input_ids[None], device),
        "position_ids": _sent(position_ids[None], device),
        "logits_to_keep": _sent(predictors, device),
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        "layout": layout,
    }


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: query [1, Q, N, D], key and value [1, K, N, D].

    Returns:
        [1, N, Q, D]. Without a layout, what transformers' own attention returns.
    """
    if layout is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    if given := [name for name in UNSUPPORTED if kwargs.get(name) is not None]:
        raise ValueError(
            f"--model.share_prompts true: {type(module).__name__} has attention with {given[0]}, "
            "which is not supported; set it to false"
        )
    prompts, completions = layout.prompts, layout.completions
    tokens = [x.squeeze(0).transpose(0, 1) for x in (query, key, value)]  # [N, heads, D]
    in_prompts = [prompts.pad(x[: prompts.tokens]) for x in tokens]
    seen = prompts.unpad(_attend(*in_prompts, scale=scaling, is_causal=True))
    if completions.width:
        own = [completions.pad(x[prompts.tokens :]) for x in tokens]
        keys, values = (
            torch.cat([prompt[layout.prompt_of], x], 1)
            for prompt, x in zip(in_prompts[1:], own[1:], strict=True)
        )
        after = _attend(own[0], keys, values, scale=scaling, attn_mask=layout.mask)
        seen = torch.cat([seen, completions.unpad(after)])
    return seen[None], None


def _attend(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
    """[rows, width, heads, D] each, in and out."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda and "attn_mask" in how:  # CUDA has no fast kernel for both
        repeats = query.shape[1] // key.shape[1]
        key, value, grouped = repeat_kv(key, repeats), repeat_kv(value, repeats), False
    seen = scaled_dot_product_attention(query, key, value, enable_gqa=grouped, **how)
    return seen.transpose(1, 2)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for every pass without a layout
