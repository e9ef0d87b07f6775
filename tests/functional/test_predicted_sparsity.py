"""Law 2 against counted moves: on the bfloat16 grid, off it, and where every move is known."""

import math

import pytest
import torch

from rlsgd.functional.predicted_sparsity import (
    expected_unchanged,
    unchanged_after,
    unchanged_off_grid,
    unchanged_on_grid,
    within_tolerance,
)
from rlsgd.functional.updates import count_unchanged

N = 400_000  # the counted share has a standard deviation of at most 0.0008


def weights(*, on_grid: bool) -> torch.Tensor:
    drawn = 0.05 * torch.randn(N, generator=torch.Generator().manual_seed(0))
    return drawn.bfloat16().float() if on_grid else drawn


def counted(weight: torch.Tensor, size: float) -> float:
    move = size * torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    after = (weight.double() + move).float()
    return count_unchanged(after, weight).fractions()["unchanged_bf16"]


@pytest.mark.parametrize("on_grid", [True, False])
@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-4, 1e-3])
def test_the_expected_share_is_the_counted_one(on_grid, size):
    weight = weights(on_grid=on_grid)
    expected = float(expected_unchanged(weight, size)) / N
    assert 0.02 < expected < 0.999
    # on the grid a power of two also moves into the finer binade below it, which the law leaves out
    assert expected == pytest.approx(counted(weight, size), abs=0.004)


@pytest.mark.parametrize("on_grid", [True, False])
def test_moves_that_are_known(on_grid):
    """Lengths over five decades, whose directions alone are drawn."""
    weight, distance = weights(on_grid=on_grid), torch.logspace(-7, -2, N, dtype=torch.float64)
    signs = torch.randn(N, generator=torch.Generator().manual_seed(2)).sign()
    after = (weight.double() + signs * distance).float()
    counted = count_unchanged(after, weight).fractions()["unchanged_bf16"]
    expected = float(unchanged_after(weight, distance)) / N
    assert 0.3 < expected < 0.8
    assert expected == pytest.approx(counted, abs=0.002)


def test_half_an_ulp_and_a_uniform_place_by_hand():
    one = torch.ones(1, dtype=torch.float64)
    # P(|move| <= ulp / 2) with ulp = 2 sigma is that of one standard deviation
    assert float(unchanged_on_grid(2 * one, one)) == pytest.approx(math.erf(1 / math.sqrt(2)))
    moves = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    density = torch.exp(-moves.square() / 2) / math.sqrt(2 * math.pi)
    kept = (1 - moves.abs() / 3).clamp(min=0)
    expected = float(torch.trapezoid(density * kept, moves))
    assert float(unchanged_off_grid(3 * one, one)) == pytest.approx(expected, rel=1e-9)
    assert float(unchanged_off_grid(one, 1e6 * one)) == pytest.approx(0, abs=1e-6)


def test_nothing_moves_without_a_size():
    weight = torch.tensor([0.0, 1.0, 0.3, -2.5])
    assert float(expected_unchanged(weight, 0.0)) == 4
    # 1 and 2.5 are bfloat16 numbers, 0.3 is not: it lies at a random place of its 2^-9
    halves = torch.tensor([0.0, 2.0**-8, 2.0**-10, 2.0**-6])
    assert float(unchanged_after(weight, halves)) == 1 + 1 + 0.5 + 0
    assert within_tolerance(1e-5, 0.0) == 1.0
    assert within_tolerance(1e-5, 1e-5) == pytest.approx(0.682689492)
