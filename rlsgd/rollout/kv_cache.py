"""Keys and values of a generation: written in place, repeated for a group, read without copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class InPlaceLayer(DynamicLayer):
    """Keys and values of a layer with full attention, in buffers with room for tokens to come.

    transformers' own layer copies all of them for every token. Here a token is written where it
    belongs, and the buffers grow by half when they are full.

    Args:
        limit: tokens of prompt and completion that the layer will hold at most.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.buffers: tuple[Tensor, ...] = ()  # keys and values [rows, heads, capacity, size]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [b, heads, t, size]; returns those of all tokens.

        Under autocast rotary positions leave keys in float32: they are kept in the values' dtype,
        in which attention computes, or the cache would be half as large again and be cast whole for
        every token.
        """
        if torch.is_autocast_enabled(key_states.device.type):
            key_states = key_states.to(value_states.dtype)
        if not self.is_initialized:  # prompts, whose rows are yet to be repeated
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        assert self.keys is not None and self.values is not None
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.buffers or end > self.buffers[0].shape[-2]:
            self.buffers = tuple(self._with_room(s, end) for s in (self.keys, self.values))
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: len(states), :, start:end] = states
        self._show(len(key_states), end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was; rows may be repeated or left out."""
        assert self.keys is not None and self.values is not None
        length = self.get_seq_length()
        room = min(length + 1, self.limit)
        states = [s.index_select(0, beam_idx) for s in (self.keys, self.values)]
        self.buffers = tuple(self._with_room(s, room) for s in states)
        self._show(len(beam_idx), length)

    def keep(self, targets: Tensor, sources: Tensor, rows: int) -> None:
        """Copy rows `sources` over rows `targets`, then drop all but the first `rows`."""
        length = self.get_seq_length()
        for buffer in self.buffers:
            buffer[targets, :, :length] = buffer[sources, :, :length]
        self._show(rows, length)

    def _with_room(self, states: Tensor, length: int) -> Tensor:
        assert length <= self.limit, "more tokens than were announced"
        rows, heads, filled, size = states.shape
        buffer = states.new_empty(rows, heads, min(length + length // 2, self.limit), size)
        buffer[:, :, :filled] = states
        return buffer

    def _show(self, rows: int, length: int) -> None:
        self.keys, self.values = (buffer[:rows, :, :length] for buffer in self.buffers)


class GenerationCache(DynamicCache):
    """The cache of one generation.

    Layers that do not attend to every token (sliding windows, recurrent states) are transformers'.

    Args:
        config: config of the model.
        limit: tokens of prompt and completion that it will hold at most.
    """

    def __init__(self, config: PretrainedConfig, limit: int) -> None:
        super().__init__(config=config)
        self.layers = [
            InPlaceLayer(limit) if type(layer) is DynamicLayer else layer for layer in self.layers
        ]

    def keep(self, rows: list[int], device: torch.device) -> None:
        """Row i becomes what row `rows[i]` was, for distinct rows; cheap where most stay."""
        moves = [(i, row) for i, row in enumerate(rows) if i != row]
        pairs = torch.tensor(moves, dtype=torch.long).view(-1, 2)
        targets, sources = pairs.to(device, non_blocking=True).T
        index = torch.tensor(rows).to(device, non_blocking=True)
        for layer in self.layers:
            if isinstance(layer, InPlaceLayer):
                layer.keep(targets, sources, len(rows))
            else:
                layer.reorder_cache(index)  # pyright: ignore[reportArgumentType]


@contextmanager
def attention_by_groups() -> Iterator[None]:
    """Until exit, transformers' `sdpa` reads the cache as it is, also where heads share keys.

    For one query with a padding mask, transformers makes a copy of all keys and values for each of
    the heads that share them, which costs more than the attention itself.
    """
    with _registered(ALL_ATTENTION_FUNCTIONS, "sdpa", grouped_attention):
        yield


@contextmanager
def padding_known(policy: PreTrainedModel, cache: GenerationCache, padded: bool) -> Iterator[None]:
    """Until exit, transformers makes no mask where no row is padded, and does not ask the device.

    It would look at the padding mask in every pass, which waits for the device. Caches with layers
    of transformers' own keep its masks, which see a part of the tokens.
    """
    name = str(policy.config._attn_implementation)
    theirs = ALL_MASK_ATTENTION_FUNCTIONS.get(name) is not sdpa_mask
    if theirs or not all(isinstance(layer, InPlaceLayer) for layer in cache.layers):
        yield
        return

    def mask(original: Callable[..., Tensor | None], **kwargs: Any) -> Tensor | None:
        known = {"allow_is_causal_skip": False} if padded else {"attention_mask": None}
        return original(**kwargs | known)

    with _registered(ALL_MASK_ATTENTION_FUNCTIONS, name, mask):
        yield


@contextmanager
def _registered(functions: Any, name: str, ours: Callable[..., Any]) -> Iterator[None]:
    """Have `ours` in a register of transformers; its first argument is what was there."""
    original = functions[name]
    functions[name] = partial(ours, original)
    try:
        yield
    finally:
        del functions[name]
        if functions.get(name) is not original:  # it had been registered before
            functions[name] = original


def grouped_attention(
    original: Callable[..., tuple[Tensor, None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Heads that share keys, taken for as many positions of one head, when the query is one token.

    Args:
        original: attends in all other cases.
        module: the attention of a layer.
        query: [b, heads, t, size].
        key: [b, heads that are shared, T, size].
        value: as the keys.
        attention_mask: [b, 1, t, T], or none.
        kwargs: others of transformers' attention functions.

    Returns:
        [b, t, heads, size], and no attention weights.
    """
    rows, heads, queries, size = query.shape
    shared = key.shape[1]
    by_head = attention_mask is not None and attention_mask.shape[1] > 1
    if queries > 1 or shared == heads or by_head or kwargs.get("position_bias") is not None:
        return original(module, query, key, value, attention_mask, **kwargs)
    attended = scaled_dot_product_attention(
        query.reshape(rows, shared, heads // shared, size),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=kwargs.get("dropout", 0.0),
        scale=kwargs.get("scaling"),
    )
    return attended.reshape(rows, 1, heads, value.shape[-1]), None
