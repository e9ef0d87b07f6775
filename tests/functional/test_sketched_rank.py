import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsgd.functional.sketched_rank import RankBounds, rank_bounds, sketched_rank
from rlsgd.functional.updates import effective_rank

SPECTRA = {  # 60 singular values each
    "flat": torch.ones(60),
    "linear": torch.linspace(1, 1 / 60, 60),
    "power law": torch.arange(1, 61) ** -1.0,
    "geometric": torch.logspace(0, -6, 60),
    "rank 5": torch.cat([torch.ones(5), torch.zeros(55)]),
    "rank 5 in noise": torch.cat([torch.ones(5), torch.full((55,), 1e-3)]),
    "one": torch.cat([torch.ones(1), torch.zeros(59)]),
}


def matrix_with(singular_values: torch.Tensor, rows: int, columns: int, seed: int = 0):
    """A float64 matrix with these singular values, by construction and not by decomposition."""
    generator = torch.Generator().manual_seed(seed)
    count = len(singular_values)
    left, right = (
        torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))[0]
        for size in (rows, columns)
    )
    return left * singular_values.double() @ right.mT


@pytest.mark.parametrize("shape", [(60, 60), (60, 700), (700, 60)])
@pytest.mark.parametrize("columns", [1, 4, 8, 30, 59, 60, 200])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_bounds_enclose_the_rank_of_a_known_spectrum(spectrum: str, columns: int, shape):
    matrix = matrix_with(SPECTRA[spectrum], *shape)
    for energy in (0.5, 0.9, 0.99):
        rank = effective_rank(SPECTRA[spectrum].double().square(), energy=energy)
        bounds = sketched_rank(matrix, energy=energy, columns=columns)
        assert 1 <= bounds.low <= rank <= bounds.high
        # equal values hold the least; one more where the threshold is met to the last digit
        assert bounds.high <= math.floor(60 * energy) + 1
        if columns >= 60:
            assert bounds.outside < 1e-12
        if columns >= 60 and spectrum in ("linear", "power law", "geometric"):
            assert bounds.low == bounds.high, "the subspace is the whole space"


def test_low_rank_is_found_exactly_and_the_float32_matrix_alike():
    matrix = matrix_with(SPECTRA["rank 5 in noise"], 300, 60)
    for each in (matrix, matrix.float(), matrix.mT.contiguous()):
        bounds = sketched_rank(each, columns=8)
        # 5 of 5.000055 squares: nothing else is near; 52 of 55 small ones are outside
        assert (bounds.low, bounds.high) == (5, 5)
        assert bounds.outside == pytest.approx(52e-6 / 5.000055, rel=0.2)


# T = 10 and b = 6, 3: held are 0, 0.6 and 0.9, and 0.1 is outside. Of 4 values 2 are left at 0.9.
@pytest.mark.parametrize(
    ("energy", "low", "high"),
    [
        (0.5, 1, 1),
        (0.65, 1, 2),  # 0.6 + 0.1 may reach it, 0.9 does
        (0.8, 2, 2),
        (0.94, 2, 3),  # the third holds at least half of the last 0.1
        (0.96, 2, 4),
        (1.0, 2, 4),
    ],
)
def test_bounds_by_hand(energy: float, low: int, high: int):
    squares = torch.tensor([6.0, 3.0], dtype=torch.float64)
    bounds = rank_bounds(squares, 10.0, (9, 4), energy=energy)
    assert (bounds.low, bounds.high) == (low, high)
    assert bounds.outside == pytest.approx(0.1, rel=1e-12)


def test_no_update_has_rank_0():
    assert sketched_rank(torch.zeros(9, 4)) == RankBounds(0, 0, 0.0)


def test_a_threshold_within_rounding_belongs_to_both_sides():
    squares = torch.full((100,), 1.0, dtype=torch.float64)
    bounds = rank_bounds(squares, 100.0, (100, 100), energy=0.99)
    assert (bounds.low, bounds.high) == (99, 100)


def test_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    first = sketched_rank(torch.eye(30), columns=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert sketched_rank(torch.eye(30), columns=5) == first


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(0, 1).map(lambda v: v if v > 1e-9 else 0.0), min_size=2, max_size=20),
    extra=st.integers(0, 30),
    columns=st.integers(1, 25),
    energy=st.floats(0.05, 0.999),
    seed=st.integers(0, 2**31),
)
def test_bounds_always_enclose_the_svd_count(values, extra, columns, energy, seed):
    singular = torch.tensor(values, dtype=torch.float64)
    matrix = matrix_with(singular, len(values) + extra, len(values), seed)
    rank = effective_rank(torch.linalg.svdvals(matrix).square(), energy=energy)
    bounds = sketched_rank(matrix, energy=energy, columns=columns, seed=seed)
    assert bounds.low <= rank <= bounds.high
