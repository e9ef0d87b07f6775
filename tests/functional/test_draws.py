"""Tokens drawn by inverting the cumulative distribution."""

import pytest
import torch
from torch import Tensor

from rlsgd.functional.logprobs import BLOCK, draw_tokens

ALMOST_1 = 1 - 2.0**-53  # the largest number below 1, and that torch.rand gives


def cumulative(logits: Tensor, temperature: float) -> Tensor:
    """Upper ends [V] of the tokens' parts of [0, 1], by the definition."""
    return (logits.double() / temperature).softmax(-1).cumsum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("vocabulary", [3, BLOCK, BLOCK + 1, 5 * BLOCK - 1])
def test_every_token_has_its_part_of_the_unit_interval(vocabulary: int, temperature: float):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(vocabulary, dtype=torch.float64, generator=generator)
    ends = cumulative(logits, temperature)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    inset = 1e-3 * (ends - starts)  # rounding is 1e-15
    rows = logits.expand(vocabulary, -1)
    for uniforms in (starts + inset, ends - inset):
        drawn = draw_tokens(rows, uniforms, temperature=temperature)
        assert torch.equal(drawn, torch.arange(vocabulary))


def test_rare_tokens_of_a_large_vocabulary_keep_their_probability():
    """50,000 of about 1e-12 each behind one of nearly 1: sums in float32 would lose them all."""
    logits = torch.full((50_001,), -27.631)
    logits[0] = 0.0
    first, rare = logits.softmax(-1)[:2].double()
    tokens = torch.tensor([1, 2, 17_000, 50_000])
    middle = first + (tokens.double() - 0.5) * rare
    assert rare < 1.1e-12
    drawn = draw_tokens(logits.expand(4, -1), middle / (first + 50_000 * rare))
    assert torch.equal(drawn, tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_impossible_tokens_are_not_drawn_at_either_end(dtype: torch.dtype):
    """The first and the last 300 tokens are impossible: whole blocks, and parts of one."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        logits = torch.randn(1000, dtype=torch.float64, generator=generator).to(dtype)
        logits[:300] = logits[700:] = -torch.inf
        uniforms = torch.tensor([0.0, ALMOST_1], dtype=torch.float64)
        drawn = draw_tokens(logits.expand(2, -1), uniforms, temperature=0.7)
        assert drawn.tolist() == [300, 699]


def test_rows_are_drawn_each_from_its_own_distribution():
    certain = torch.full((4, 600), -torch.inf)
    certain[torch.arange(4), torch.tensor([599, 0, 255, 256])] = 3.0
    uniforms = torch.tensor([0.1, 0.9, 0.5, ALMOST_1], dtype=torch.float64)
    assert draw_tokens(certain, uniforms).tolist() == [599, 0, 255, 256]


def test_greedy_has_no_distribution():
    with pytest.raises(ValueError, match=r"^temperature"):
        draw_tokens(torch.zeros(1, 3), torch.zeros(1, dtype=torch.float64), temperature=0.0)
