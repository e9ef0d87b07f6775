"""Geometry of an update against planted rotations and masks, and against a direct SVD."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.linalg import subspace_angles
from scipy.stats import binom
from torch import Tensor

from rlsgd.functional.geometry import (
    MaskOverlap,
    changed_in_bf16,
    decompose,
    entropy_rank,
    largest,
    leading_energy,
    low_rank,
    numerical_rank,
    overlap,
    principal_angles,
    smallest,
    spectral_drift,
    unchanged_relative,
)
from rlsgd.functional.updates import ROWS, gram, squared_spectrum


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(rows, columns, seed=seed))[0]


SHAPES = [(12, 12), (9, 40), (40, 9)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_decomposition_equals_a_direct_svd(shape, rank):
    matrix = normal(*shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = decompose(matrix, rank)
    torch.testing.assert_close(found.squared_spectrum, values.square(), rtol=1e-12, atol=1e-12)
    for basis, vectors in ((found.left, left), (found.right, right.mT)):
        leading = vectors[:, :rank]
        torch.testing.assert_close(  # projectors: bases and signs are free
            basis @ basis.mT, leading @ leading.mT, rtol=0, atol=1e-11
        )
    best = left[:, :rank] * values[:rank] @ right[:rank]
    torch.testing.assert_close(low_rank(matrix, found), best, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_of_lower_rank_still_has_orthonormal_bases(shape):
    matrix = normal(shape[0], 2) @ normal(2, shape[1], seed=1)
    found = decompose(matrix, 5)
    for basis in (found.left, found.right):
        eye = torch.eye(5, dtype=torch.float64)
        torch.testing.assert_close(basis.mT @ basis, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(low_rank(matrix, found), matrix, rtol=0, atol=1e-11)


# 500 columns are six blocks, of which the last is narrower; 100 are two, and 40 are one
@pytest.mark.parametrize("shape", [(500, 500), (300, 100), (40, 300), (40, 40)])
def test_gram_in_chunks_equals_the_whole_product(shape, monkeypatch):
    matrix = normal(*shape)
    whole = matrix.mT @ matrix if shape[0] > shape[1] else matrix @ matrix.mT
    assert max(shape) < ROWS
    torch.testing.assert_close(gram(matrix), whole, rtol=1e-13, atol=1e-13)
    assert torch.equal(gram(matrix), gram(matrix).mT)
    monkeypatch.setattr("rlsgd.functional.updates.ROWS", 17)
    monkeypatch.setattr("rlsgd.functional.geometry.CHUNK", 700)
    torch.testing.assert_close(gram(matrix), whole, rtol=1e-13, atol=1e-13)
    basis = torch.linalg.svd(matrix)[0][:, :3]
    left = decompose(matrix, 3).left
    torch.testing.assert_close(left @ left.mT, basis @ basis.mT, rtol=0, atol=1e-11)


def test_spectral_drift_by_hand():
    # sigma (3, 4) -> (3, 4.5): 0.5 / 5
    initial = torch.tensor([16.0, 9.0], dtype=torch.float64)
    final = torch.tensor([4.5**2, 9.0], dtype=torch.float64)
    assert spectral_drift(initial, final) == pytest.approx(0.1, rel=1e-14)
    assert spectral_drift(initial, initial) == 0.0
    assert math.isnan(spectral_drift(torch.zeros(2), final))


def test_a_rotation_leaves_the_spectrum_and_a_scaling_the_subspaces():
    matrix = normal(20, 30)
    rotated = orthonormal(20, 20, seed=1) @ matrix
    before, after = decompose(matrix, 4), decompose(rotated, 4)
    # Weyl: singular values agree to rounding of the largest, about 1e-15 of the norm.
    assert spectral_drift(before.squared_spectrum, after.squared_spectrum) < 1e-13
    assert principal_angles(before.right, after.right).max() < 1e-12
    assert principal_angles(before.left, after.left).max() > 0.1
    scaled = decompose(1.01 * matrix, 4)
    drift = spectral_drift(before.squared_spectrum, scaled.squared_spectrum)
    assert drift == pytest.approx(0.01, rel=1e-12)
    assert principal_angles(before.left, scaled.left).max() < 1e-12


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.3, math.pi / 4, 1.2, math.pi / 2])
def test_planted_angles(angle):
    """The second of three directions is turned by the angle into one outside the subspace."""
    frame = orthonormal(15, 4)
    first = frame[:, :3]
    second = first.clone()
    second[:, 1] = math.cos(angle) * frame[:, 1] + math.sin(angle) * frame[:, 3]
    mixed = second @ orthonormal(3, 3, seed=2)  # a basis of the same subspace
    found = principal_angles(first, mixed)
    expected = torch.tensor([0.0, 0.0, angle], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 100.0])
def test_angles_equal_scipys(scale):
    first = orthonormal(30, 5)
    second = torch.linalg.qr(first + scale * normal(30, 5, seed=3))[0]
    expected = np.sort(subspace_angles(first.numpy(), second.numpy()))
    np.testing.assert_allclose(principal_angles(first, second).numpy(), expected, rtol=1e-6)


def test_angles_of_planted_singular_vectors_through_the_decomposition():
    """Singular values 5, 4, 3 stay; left vectors 1 and 3 turn by 0.2 in their plane."""
    left, right = orthonormal(10, 3), orthonormal(8, 3, seed=1)
    values = torch.tensor([5.0, 4.0, 3.0], dtype=torch.float64)
    turned = left.clone()
    turned[:, 0] = math.cos(0.2) * left[:, 0] + math.sin(0.2) * left[:, 2]
    turned[:, 2] = math.cos(0.2) * left[:, 2] - math.sin(0.2) * left[:, 0]
    before, after = (decompose(basis * values @ right.mT, 2) for basis in (left, turned))
    expected = torch.tensor([0.0, 0.2], dtype=torch.float64)
    angles = principal_angles(before.left, after.left)
    torch.testing.assert_close(angles, expected, rtol=1e-12, atol=1e-12)
    assert principal_angles(before.right, after.right).max() < 1e-12


MAGNITUDES = hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.one_of(
        st.floats(0, 2.0**120, width=32), st.sampled_from([0.0, 1.0, 1.4012984643248171e-45])
    ),
)


@given(MAGNITUDES, st.floats(0.01, 1.0))
def test_masks_are_the_sorted_ends(magnitudes, share):
    ordered = np.sort(magnitudes)
    count = max(1, round(share * len(magnitudes)))
    found = smallest(torch.from_numpy(magnitudes), share).numpy()
    np.testing.assert_array_equal(found, magnitudes <= ordered[count - 1])
    found = largest(torch.from_numpy(magnitudes), share).numpy()
    np.testing.assert_array_equal(found, magnitudes >= ordered[-count])


def test_masks_by_hand():
    magnitudes = torch.tensor([[5.0, 1.0, 3.0], [2.0, 4.0, 0.0]])
    assert smallest(magnitudes, 1 / 3).int().tolist() == [[0, 1, 0], [0, 0, 1]]
    assert largest(magnitudes, 1 / 3).int().tolist() == [[1, 0, 0], [0, 1, 0]]


def test_the_principal_mask_finds_the_entries_of_a_planted_block():
    """Rank one outweighs noise in a block of 6 x 5; the noise's largest entries lie elsewhere."""
    matrix = 0.01 * normal(20, 25)
    matrix[:6, :5] += 1.0
    matrix[19, 24] = 1.5  # large by itself, and no part of the leading direction
    mask = largest(low_rank(matrix, decompose(matrix, 1)).abs(), 30 / 500)
    expected = torch.zeros(20, 25, dtype=torch.bool)
    expected[:6, :5] = True
    assert torch.equal(mask, expected)


def test_overlap_by_hand():
    first = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0, 0]).bool()
    second = torch.tensor([1, 0, 1, 1, 1, 0, 0, 0, 0, 0]).bool()
    found = overlap(first, second)
    assert found == MaskOverlap(numel=10, first=3, second=4, both=2, expected=1.2)
    assert found.of_first() == (2 / 3, pytest.approx(0.4))
    assert found.of_second() == (2 / 4, pytest.approx(0.3))
    assert found.jaccard() == (2 / 5, pytest.approx(1.2 / 5.8))
    total = found + overlap(~first, second)
    assert total == MaskOverlap(20, 10, 8, 4, pytest.approx(1.2 + 2.8))
    nothing = overlap(torch.zeros(4).bool(), torch.zeros(4).bool())
    assert all(math.isnan(share) for share in nothing.of_first() + nothing.jaccard())


def test_random_changes_overlap_by_chance():
    """Hits are binomial, whatever the mask: within the interval that misses once in a billion."""
    initial = normal(200, 150).float()
    changed = torch.rand(200, 150, generator=torch.Generator().manual_seed(5)) < 0.2
    masks = {
        "low": smallest(initial.abs(), 0.3),
        "principal": largest(low_rank(initial, decompose(initial, 8)).abs(), 0.3),
    }
    for mask in masks.values():
        assert int(mask.sum()) == 9000
        found = overlap(mask, changed)
        low, high = binom.interval(1 - 1e-9, found.second, 0.3)
        assert low <= found.both <= high
        assert found.of_second()[1] == pytest.approx(0.3, rel=1e-12)


def test_the_probe_by_hand():
    initial = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, -2.0, 1e-30])
    weight = torch.tensor([1.0009, 1.0011, 1.0, 0.0, 1e-30, -2.0019, 1.0005e-30])
    assert unchanged_relative(weight, initial).int().tolist() == [1, 0, 1, 1, 0, 1, 1]
    # 1.0005e-3 apart: more than a thousandth of the smaller, less than one of the larger
    close = torch.tensor([1.0, 1.0010005])
    assert unchanged_relative(close, close.flip(0)).all()
    assert unchanged_relative(weight, initial, tolerance=1e-4).int().tolist() == [
        *(0, 0, 1, 1),
        *(0, 0, 0),
    ]


BITS = hnp.arrays(np.uint16, 40, elements=st.integers(0, 2**16 - 1))


@given(BITS, st.lists(st.integers(-2, 2), min_size=40, max_size=40))
def test_of_bfloat16_weights_the_probe_is_equality(bits, steps):
    """Neighbours are the closest there are, and they are more than a thousandth apart."""
    initial = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)
    moved = (bits.astype(np.int32) + np.array(steps)).clip(0, 2**16 - 1).astype(np.uint16)
    weight = torch.from_numpy(moved.view(np.int16).copy()).view(torch.bfloat16)
    finite = initial.isfinite() & weight.isfinite()
    initial, weight = initial[finite], weight[finite]
    assert torch.equal(unchanged_relative(weight, initial), weight == initial)
    assert torch.equal(changed_in_bf16(weight, initial), weight != initial)


def test_changes_below_half_a_step_of_bfloat16_are_invisible():
    weight = torch.tensor([1 + 2.0**-9, 1 + 2.0**-7, 1 - 2.0**-9])
    assert changed_in_bf16(weight, torch.ones(3)).int().tolist() == [0, 1, 0]


def squares(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).square()


def test_entropy_rank_by_hand():
    assert entropy_rank(squares(7, 7, 7, 7)) == pytest.approx(4, rel=1e-14)
    assert entropy_rank(squares(2, 0, 0)) == 1.0
    # p = (1/2, 1/4, 1/4): entropy 3/2 log 2
    assert entropy_rank(squares(2, 1, 1)) == pytest.approx(2**1.5, rel=1e-14)
    assert entropy_rank(squares(0, 0)) == 0.0


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
@pytest.mark.parametrize("rank", [0, 1, 7, 40])
def test_numerical_rank_equals_matrix_rank(shape, rank):
    """Planted, so that no singular value lies near the threshold of 60 * 2^-23 = 7e-6."""
    values = torch.logspace(0, -4, 40, dtype=torch.float64) * (torch.arange(40) < rank)
    matrix = orthonormal(shape[0], 40) * values @ orthonormal(shape[1], 40, seed=1).mT
    expected = int(torch.linalg.matrix_rank(matrix.float()))
    assert expected == rank
    assert numerical_rank(squared_spectrum(matrix.float()), shape) == rank


def test_numerical_rank_has_the_threshold_of_matrix_rank():
    limit = 50 * 2.0**-23
    assert numerical_rank(squares(1, 1.01 * limit, 0.99 * limit), (50, 3)) == 2
    assert numerical_rank(squares(1, 1.01 * limit, 0.99 * limit), (3, 3)) == 3
    assert numerical_rank(torch.zeros(0), (0, 3)) == 0


def test_leading_energy_by_hand():
    spectrum = torch.tensor([6.0, 3.0, 1.0])
    shares = [leading_energy(spectrum, count) for count in (1, 2, 5)]
    assert shares == pytest.approx([0.6, 0.9, 1.0], rel=1e-6)
    assert leading_energy(torch.zeros(3), 2) == 0.0
