import math

import pytest
import torch

from rlsgd.functional.bf16_difference import bf16_isclose
from rlsgd.functional.updates import (
    SparsityCounts,
    count_unchanged,
    effective_rank,
    not_finite,
    rank_is_certain,
    rounding_margin,
    spectrum_for_rank,
    squared_norm,
    squared_spectrum,
    stable_rank,
)


def matrix_with(singular_values, rows, columns, seed=0):
    """A float64 matrix with these singular values, by construction and not by decomposition."""
    generator = torch.Generator().manual_seed(seed)

    def orthonormal(size):
        square = torch.randn(size, size, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(square)[0][:, : len(singular_values)]

    return orthonormal(rows) * singular_values @ orthonormal(columns).mT


@pytest.mark.parametrize("changed", [0, 1, 37, 600])
def test_exactly_k_changed_entries(changed):
    generator = torch.Generator().manual_seed(0)
    initial = torch.randn(20, 30, generator=generator)
    weight = initial.clone()
    entries = torch.randperm(600, generator=generator)[:changed]
    weight.view(-1)[entries] *= 2  # visible at every dtype, and above every tolerance
    weight.view(-1)[entries] += torch.where(weight.view(-1)[entries] > 0, 1.0, -1.0)
    fractions = count_unchanged(weight, initial).fractions()
    assert fractions.keys() == {
        "unchanged_fp32",
        "unchanged_bf16",
        "bf16_difference_isclose_1e-5",
        "bf16_difference_zero",
        "within_1e-8",
        "within_1e-7",
        "within_1e-6",
        "within_1e-5",
        "within_1e-4",
    }
    assert set(fractions.values()) == {(600 - changed) / 600}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_counts_do_not_depend_on_the_chunks(dtype, monkeypatch):
    """In parts of 7 entries as by the definitions, over the whole tensor."""
    generator = torch.Generator().manual_seed(0)
    initial = (0.02 * torch.randn(50, 41, generator=generator)).to(dtype)
    moved = torch.rand(50, 41, generator=generator) < 0.6
    steps = 10.0 ** torch.randint(-10, -2, (50, 41), generator=generator) * moved
    weight = (initial + steps * torch.randn(50, 41, generator=generator)).to(dtype)
    weight[3, 4] = math.inf
    initial[3, 4] = math.inf
    weight[5, 6] = math.nan
    now, then = weight.float(), initial.float()
    expected = {
        "unchanged_fp32": int((now == then).sum()),
        "unchanged_bf16": int((now.bfloat16() == then.bfloat16()).sum()),
        "bf16_difference_isclose_1e-5": int(authors_unchanged(now, then).sum()),
        "bf16_difference_zero": int((now.bfloat16() - then.bfloat16() == 0).sum()),
    }
    for tolerance in (1e-8, 1e-7, 1e-6, 1e-5, 1e-4):
        key = f"within_1e-{round(-math.log10(tolerance))}"
        expected[key] = int(((now - then).abs() <= tolerance).sum())
    assert len(set(expected.values())) >= 4
    monkeypatch.setattr("rlsgd.functional.updates.CACHED", 7)
    fractions = count_unchanged(weight, initial).fractions()
    assert {name: fraction * 2050 for name, fraction in fractions.items()} == pytest.approx(
        expected, rel=1e-12
    )


def test_tolerances_and_dtypes_by_hand():
    # At 1.0 neighbours are 2^-23 apart in float32 (upwards) and 2^-7 in bfloat16.
    moves = torch.tensor([0.0, 2.0**-23, 2.0**-17, 2.0**-14, 2.0**-9, 2.0**-7])
    counts = count_unchanged(torch.ones(6) + moves, torch.ones(6))
    # 2^-23 = 1.2e-7, 2^-17 = 7.6e-6, 2^-14 = 6.1e-5, 2^-9 = 2.0e-3, 2^-7 = 7.8e-3.
    assert {name: fraction * 6 for name, fraction in counts.fractions().items()} == {
        "unchanged_fp32": 1,
        "unchanged_bf16": 5,  # 2^-9 is below half a step
        "bf16_difference_isclose_1e-5": 5,
        "bf16_difference_zero": 5,
        "within_1e-8": 1,
        "within_1e-7": 1,
        "within_1e-6": 2,
        "within_1e-5": 3,
        "within_1e-4": 4,
    }


def authors_unchanged(weight, initial):
    """As the public code of arXiv:2602.07729's authors counts, written here once more."""
    delta = weight.to(torch.bfloat16) - initial.to(torch.bfloat16)
    return torch.isclose(delta, torch.zeros_like(delta), atol=1e-5)


def test_the_authors_measure_on_every_pair_of_neighbouring_bfloat16_numbers():
    """Bit for bit, at the tolerance's own rounding: bf16(1e-5) is 1.00136e-5, and inclusive."""
    numbers = torch.arange(0x0000, 0x7F80, dtype=torch.int16).view(torch.bfloat16)
    for steps in (1, 2, 3, 7, 50, 1000):
        weight, initial = numbers[steps:], numbers[:-steps]
        expected = authors_unchanged(weight, initial)
        assert 0 < int(expected.sum()) < len(weight)
        assert torch.equal(bf16_isclose(weight.float(), initial.float()), expected)
        counts = count_unchanged(weight.float(), initial.float())
        assert int(counts.bf16_isclose) == int(expected.sum()) and int(counts.bf16_zero) == 0
    edge = torch.tensor([1e-5], dtype=torch.bfloat16)
    assert f"{float(edge):.5e}" == "1.00136e-05"
    around = torch.stack([edge, torch.nextafter(edge, torch.ones_like(edge))]).squeeze(1)
    assert bf16_isclose(around, torch.zeros(2)).tolist() == [True, False]


def test_small_weights_show_in_bfloat16_what_large_ones_hide():
    moved = count_unchanged(torch.tensor([1.0, 1e-4]) + 1e-5, torch.tensor([1.0, 1e-4]))
    assert moved.fractions()["unchanged_fp32"] == 0
    assert moved.fractions()["unchanged_bf16"] == 0.5


def test_bfloat16_weights_against_a_float32_start():
    initial = torch.tensor([1.0, 1.0 + 2.0**-9])
    fractions = count_unchanged(initial.bfloat16(), initial).fractions()
    assert fractions["unchanged_fp32"] == 0.5
    assert fractions["unchanged_bf16"] == 1.0


def test_zeros_of_either_sign_are_unchanged_and_nan_never_is():
    weight = torch.tensor([-0.0, float("nan")])
    fractions = count_unchanged(weight, torch.tensor([0.0, float("nan")])).fractions()
    assert set(fractions.values()) == {0.5}


def test_tolerance_is_inclusive_and_named_as_given():
    counts = count_unchanged(
        torch.tensor([2.5e-4, 0.5, 2.0]), torch.zeros(3), tolerances=(2.5e-4, 0.5, 1)
    )
    assert {key: int(count) for key, count in counts.within.items()} == {
        "2.5e-4": 1,
        "5e-1": 2,
        "1e0": 2,
    }


def test_counts_of_tensors_add_up_to_the_count_of_all():
    generator = torch.Generator().manual_seed(0)
    initial = torch.randn(50, 8, generator=generator)
    weight = initial + torch.randn(50, 8, generator=generator) * 10.0 ** torch.arange(-10, -2)
    parts = zip(weight.split([7, 13, 30]), initial.split([7, 13, 30]), strict=True)
    total = sum((count_unchanged(w, w0) for w, w0 in parts), SparsityCounts())
    whole = count_unchanged(weight, initial)
    assert total.numel == 400
    assert total.fractions() == whole.fractions()
    assert total.distances() == pytest.approx(whole.distances(), rel=1e-14)  # float64, other order
    assert (whole + SparsityCounts()).fractions() == whole.fractions()
    assert 0 < total.fractions()["within_1e-5"] < total.fractions()["within_1e-4"] < 1


def test_displacement_by_hand():
    # (3, 4, 0, 12) has norm 13, and the start (0, 3, 0, 4) norm 5
    counts = count_unchanged(
        torch.tensor([3.0, 7.0, 0.0, 16.0]), torch.tensor([0.0, 3.0, 0.0, 4.0])
    )
    assert counts.distances() == {"displacement": 13.0, "relative_displacement": 13.0 / 5.0}
    both = counts + count_unchanged(torch.tensor([84.0]), torch.tensor([0.0]))
    assert both.distances() == {"displacement": 85.0, "relative_displacement": 17.0}
    assert count_unchanged(torch.ones(4), torch.zeros(4)).distances() == {"displacement": 2.0}
    assert count_unchanged(torch.ones(4), torch.ones(4)).distances() == {
        "displacement": 0.0,
        "relative_displacement": 0.0,
    }


def test_displacement_is_exact_where_float32_would_not_be():
    """The square of 2^-80 underflows in float32, and 2^30 - 1 is no number of it."""
    tiny = count_unchanged(torch.full((4,), 2.0**-80), torch.zeros(4))
    assert tiny.distances() == {"displacement": 2.0**-79}
    assert float(squared_norm(torch.ones(1).expand(2**23 + 5))) == 2**23 + 5  # over chunks
    moved = torch.tensor([1.0 + 2.0**-23])
    assert count_unchanged(moved, torch.ones(1)).distances()["displacement"] == 2.0**-23
    far = count_unchanged(torch.tensor([2.0**30]), torch.tensor([1.0]))
    assert far.distances()["displacement"] == 2.0**30 - 1
    assert math.isnan(count_unchanged(moved * torch.nan, moved).distances()["displacement"])


def test_what_does_not_add_up_is_refused():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="different tolerances"):
        count_unchanged(one, one, tolerances=(1e-5,)) + count_unchanged(one, one)
    with pytest.raises(ValueError, match=r"\(1,\) and initial weight \(2,\) differ in shape"):
        count_unchanged(one, torch.ones(2))
    with pytest.raises(ValueError, match="no entries"):
        SparsityCounts().fractions()


@pytest.mark.parametrize("shape", [(6, 6), (6, 40), (40, 6)])
def test_spectrum_of_a_product_of_known_factors(shape):
    singular_values = torch.tensor([5.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    squared = squared_spectrum(matrix_with(singular_values, *shape))
    expected = torch.tensor([25.0, 9.0, 4.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(squared, expected, rtol=1e-13, atol=1e-13)
    assert (squared >= 0).all()
    assert effective_rank(squared) == 4  # 38 of 39 is 97.4%
    assert effective_rank(squared, energy=0.97) == 3
    assert stable_rank(squared) == pytest.approx(39 / 25, rel=1e-13)


@pytest.mark.parametrize("rank", [1, 2, 5, 10])
def test_equal_singular_values_have_every_rank_equal(rank):
    singular_values = torch.full((rank,), 1e-4, dtype=torch.float64)
    squared = squared_spectrum(matrix_with(singular_values, 30, 12).float())
    assert effective_rank(squared) == rank
    assert stable_rank(squared) == pytest.approx(rank, rel=1e-5)


@pytest.mark.parametrize(
    ("squares", "energy", "by_hand"),
    [
        ([90.0, 9.0, 1.0], 0.99, 2),
        ([90.0, 8.9, 1.1], 0.99, 3),
        ([99.0, 1.0], 0.99, 1),
        ([50.0, 30.0, 19.0, 1.0], 0.99, 3),
        ([50.0, 30.0, 19.0, 1.0], 0.8, 2),
        ([3.0, 2.0, 1.0, 0.0], 1.0, 3),
        ([7.0], 0.99, 1),
        ([0.0, 0.0], 0.99, 0),
        ([], 0.99, 0),
    ],
)
def test_effective_rank_by_hand(squares, energy, by_hand):
    assert effective_rank(torch.tensor(squares, dtype=torch.float64), energy=energy) == by_hand


@pytest.mark.parametrize("square", [0.1, 0.3, 1 / 3, 1e-9])
@pytest.mark.parametrize("size", [100, 1000])
def test_rounding_of_the_running_sum_does_not_add_a_singular_value(square, size):
    squared = torch.full((size,), square, dtype=torch.float64)
    assert effective_rank(squared) == size * 99 // 100
    assert effective_rank(squared, energy=1.0) == size


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.1, float("nan")])
def test_energy_outside_0_to_1_is_refused(energy):
    with pytest.raises(ValueError, match=r"energy must be in \(0, 1\]"):
        effective_rank(torch.ones(2), energy=energy)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (0, 4)])
def test_zero_update_has_rank_zero(shape):
    squared = squared_spectrum(torch.zeros(shape))
    assert torch.equal(squared, torch.zeros(min(shape), dtype=torch.float64))
    assert effective_rank(squared) == 0
    assert stable_rank(squared) == 0.0


DECAYS = {
    "flat": torch.ones(48),
    "linear": torch.linspace(1, 1 / 48, 48),
    "power law": torch.arange(1, 49) ** -1.0,
    "geometric to 1e-6": torch.logspace(0, -6, 48),
    "geometric to 1e-12": torch.logspace(0, -12, 48),
    "cliff to 1e-6": torch.cat([torch.ones(5), torch.full((43,), 1e-6)]),
}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("shape", [(48, 160), (160, 48)])
@pytest.mark.parametrize("scale", [1e-7, 1.0])
def test_ranks_agree_with_a_direct_decomposition(decay, shape, scale):
    delta = (matrix_with(scale * DECAYS[decay].double(), *shape)).float()
    squared = squared_spectrum(delta)
    direct = torch.linalg.svdvals(delta.double()).square()
    # The Gram matrix resolves squares down to rounding of the largest one.
    torch.testing.assert_close(squared, direct, rtol=0, atol=1e-14 * direct[0].item())
    for energy in (0.5, 0.9, 0.99, 0.999):
        assert effective_rank(squared, energy=energy) == effective_rank(direct, energy=energy)
    assert stable_rank(squared) == pytest.approx(stable_rank(direct), rel=1e-12)


def test_where_rounding_could_decide_the_svd_does():
    """1e-9 of the largest singular value is lost in the Gram matrix, and counts at energy 1."""
    matrix = matrix_with(torch.tensor([1.0, 1e-9], dtype=torch.float64), 30, 12)
    direct = torch.linalg.svdvals(matrix).square()
    assert torch.equal(spectrum_for_rank(matrix, energy=1.0), direct)
    assert direct[1] == pytest.approx(1e-18, rel=1e-6)
    assert not 0.5e-18 < squared_spectrum(matrix)[1] < 2e-18
    assert torch.equal(spectrum_for_rank(matrix, energy=0.99), squared_spectrum(matrix))


def test_a_tie_at_the_threshold_is_left_to_the_svd():
    ties = matrix_with(torch.ones(100, dtype=torch.float64), 200, 100)
    spectrum = spectrum_for_rank(ties)
    assert torch.equal(spectrum, torch.linalg.svdvals(ties).square())
    assert effective_rank(spectrum) == 99
    # half a value away from any running sum
    assert torch.equal(spectrum_for_rank(ties, energy=0.985), squared_spectrum(ties))


def test_certainty_by_hand():
    margin = rounding_margin(49152, 576)  # the embedding of SmolLM2-135M
    assert margin == pytest.approx(12 * 24 * 49728 / 2**53, rel=1e-12)
    for gap, certain in ((2 * margin, True), (0.5 * margin, False)):
        for side in (1, -1):
            squares = torch.zeros(576, dtype=torch.float64)
            squares[0], squares[1] = 0.99 + side * gap, 0.01 - side * gap
            assert rank_is_certain(squares, 49152, energy=0.99) == certain
    assert rank_is_certain(torch.zeros(3), 3, energy=0.99)
    assert rank_is_certain(torch.zeros(0), 3, energy=1.0)


@pytest.mark.parametrize("shape", [(2000, 50), (50, 2000), (300, 300)])
def test_rounding_stays_within_its_margin(shape):
    """A third of each entry has other rounding errors and the same shares of energy."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    held = [f.cumsum(0) / f.sum() for f in (squared_spectrum(matrix), squared_spectrum(matrix / 3))]
    direct = torch.linalg.svdvals(matrix).square()
    margin = rounding_margin(max(shape), min(shape))
    for other in (held[1], direct.cumsum(0) / direct.sum()):
        assert 0 < (held[0] - other).abs().max() <= margin


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), ()])
def test_only_matrices_have_a_spectrum(shape):
    with pytest.raises(ValueError, match="needs a matrix"):
        squared_spectrum(torch.ones(shape))


def test_updates_that_are_not_finite_have_no_spectrum():
    with pytest.raises(ValueError, match="not finite"):
        squared_spectrum(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_is_named(dtype: torch.dtype):
    weight = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)  # their sum is not finite
    assert not not_finite({"w": weight, "none": weight[:0]}) and not not_finite({})
    for bad in (float("nan"), float("inf"), -float("inf")):
        weight[1, 2] = bad
        assert not_finite({"v": weight[:1], "w": weight}) == ["w"]
