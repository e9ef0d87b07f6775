"""The cache against transformers' own, and attention that reads it without copies."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlsgd.rollout.kv_cache import GenerationCache, attention_by_groups, grouped_attention

CONFIG = LlamaConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=4)
LIMIT = 47


def random_states(rows: int, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys and values [rows, 2, tokens, 3], laid out as a projection leaves them."""
    keys, values = torch.randn(2, rows, tokens, 2, 3, generator=generator).transpose(2, 3)
    return keys, values


def test_it_grows_and_shrinks_as_transformers_own():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = GenerationCache(CONFIG, LIMIT), DynamicCache(config=CONFIG)
    rows = 3

    def both_take(tokens: int) -> None:
        for layer in range(2):
            states = random_states(rows, tokens, generator)
            got = ours.update(*states, layer)
            expected = theirs.update(*states, layer)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
            assert ours.get_mask_sizes(1, layer) == theirs.get_mask_sizes(1, layer)

    both_take(5)
    repeats = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    ours.reorder_cache(repeats)
    theirs.reorder_cache(repeats)
    rows = len(repeats)
    # row 6 takes the place of row 1, then row 2 that of row 0
    for kept in ([0, 6, 2, 3, 4, 5], [0, 6, 2, 3, 4, 5], [4, 1, 2, 3], [2, 1], [0], None):
        for _ in range(4):
            both_take(1)
        both_take(3)
        if kept is not None:
            kept = [row for row in kept if row < rows]
            ours.keep(kept, torch.device("cpu"))
            theirs.reorder_cache(torch.tensor(kept))
            rows = len(kept)
            assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.get_seq_length() == LIMIT
    with pytest.raises(AssertionError, match="announced"):
        ours.update(*random_states(1, 1, generator), 0)


def test_tokens_are_written_in_place_and_room_grows_by_half_up_to_the_limit():
    generator = torch.Generator().manual_seed(0)
    cache = GenerationCache(CONFIG, LIMIT)
    cache.update(*random_states(2, 10, generator), 0)
    cache.update(*random_states(2, 10, generator), 1)
    cache.reorder_cache(torch.tensor([0, 0, 1, 1]))
    places: list[tuple[int, int]] = []
    while cache.get_seq_length() < LIMIT:
        for layer in range(2):
            keys, values = cache.update(*random_states(4, 1, generator), layer)
        capacity = keys.stride(1) // keys.stride(2)  # between heads, in tokens
        places.append((keys.data_ptr(), capacity))
    assert [capacity for _, capacity in places] == 6 * [16] + 9 * [25] + 14 * [39] + 8 * [LIMIT]
    assert len(set(places)) == 4
    assert values.stride() == keys.stride()


def test_layers_with_a_window_hold_no_more_than_it():
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(num_hidden_layers=2, sliding_window=4, layer_types=kinds)
    generator = torch.Generator().manual_seed(0)
    cache = GenerationCache(config, LIMIT)
    for layer in range(2):
        cache.update(*random_states(2, 10, generator), layer)
    assert [layer.keys.shape[-2] for layer in cache.layers] == [3, 10]  # and the next token itself


CASES: dict[str, Callable[[torch.Generator], dict[str, Any]]] = {
    "padding": lambda g: {"attention_mask": torch.rand(3, 1, 1, 9, generator=g) > 0.3},
    "no mask": lambda g: {"attention_mask": None},
    "bias": lambda g: {"attention_mask": torch.randn(3, 1, 1, 9, generator=g)},
}


def states_of(heads: int, queries: int) -> tuple[torch.Generator, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"query": (3, heads, queries, 4), "key": (3, 2, 9, 4), "value": (3, 2, 9, 4)}
    return generator, {n: torch.randn(s, generator=generator) for n, s in shapes.items()}


def attention_of(heads: int) -> nn.Module:
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = heads // 2, True
    return module


def not_called(*_: Any, **__: Any) -> Any:
    raise AssertionError("keys and values would be copied")


@pytest.mark.parametrize("case", CASES)
def test_one_query_of_many_heads_needs_no_copies(case: str):
    generator, states = states_of(6, 1)
    states |= CASES[case](generator)
    options = {"scaling": 0.3, "dropout": 0.0}
    expected, _ = sdpa_attention_forward(attention_of(6), **states, **options)
    attended, weights = grouped_attention(not_called, attention_of(6), **states, **options)
    assert attended.shape == expected.shape and weights is None
    torch.testing.assert_close(attended, expected, rtol=0, atol=1e-6)  # values of size 1


@pytest.mark.parametrize(
    ("heads", "queries", "others"),
    [
        (6, 2, {"attention_mask": None}),
        (2, 1, {"attention_mask": None}),
        (6, 1, {"attention_mask": torch.arange(6.0).view(1, 6, 1, 1).expand(3, 6, 1, 9)}),
        (6, 1, {"attention_mask": None, "position_bias": torch.arange(54.0).view(1, 6, 1, 9)}),
    ],
)
def test_all_else_is_transformers_own(heads: int, queries: int, others: dict[str, Any]):
    _, states = states_of(heads, queries)
    module = attention_of(heads)
    calls: list[Any] = []

    def original(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return sdpa_attention_forward(*args, **kwargs)

    attended, _ = grouped_attention(original, module, **states, **others)
    expected, _ = sdpa_attention_forward(module, **states, **others)
    assert len(calls) == 1 and torch.equal(attended, expected)


def test_attention_comes_back_as_it_was():
    def of_a_user() -> None: ...

    for there in (ALL_ATTENTION_FUNCTIONS["sdpa"], of_a_user):
        if there is of_a_user:
            ALL_ATTENTION_FUNCTIONS["sdpa"] = there
        with pytest.raises(KeyError), attention_by_groups():
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not there
            raise KeyError
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is there
    del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
