"""Noise scale by planted gradients; the law of momentum against simulated averages."""

import itertools
import math

import pytest
import torch

from rlsgd.functional.noise_scale import (
    GradientNoise,
    averaged_noise,
    gradient_noise,
    predicted_memory,
)


def estimated(rows: torch.Tensor, sizes: list[int]) -> GradientNoise:
    """Of row gradients [N, D], split into microbatches of the given sizes."""
    shares = torch.stack([part.sum(0) for part in rows.split(sizes)]) / len(rows)
    squares = [float(share.square().sum()) for share in shares]
    return gradient_noise(squares, sizes, float(shares.sum(0).square().sum()))


@pytest.mark.parametrize("sizes", [[1] * 5, [2, 3], [1, 1, 3]])
def test_unbiased_over_every_outcome_of_independent_rows(sizes):
    """Each row is mean + one of two equally likely offsets: all 2^5 batches, by hand."""
    mean, offset = torch.tensor([0.3, -0.5]), torch.tensor([1.5, 2.0])
    outcomes = [
        estimated(mean + torch.tensor(signs)[:, None] * offset, sizes)
        for signs in itertools.product([-1.0, 1.0], repeat=5)
    ]
    total = sum(outcomes, GradientNoise())
    assert total.trace / 32 == pytest.approx(1.5**2 + 2.0**2, rel=1e-5)
    assert total.squared_mean / 32 == pytest.approx(0.3**2 + 0.5**2, rel=1e-4)
    assert total.scale == pytest.approx(6.25 / 0.34, rel=1e-4)
    assert total.signal_to_noise(5) == pytest.approx(5 * 0.34 / 6.25, rel=1e-4)


def test_by_hand_with_microbatches_of_unequal_size():
    # rows 1, 1, 4 in microbatches of 2 and 1: G = 2, n (G_i - G)^2 = 2 * 1 + 1 * 4
    found = estimated(torch.tensor([[1.0], [1.0], [4.0]]), [2, 1])
    assert found.trace == pytest.approx(6.0, rel=1e-6)
    assert found.squared_mean == pytest.approx(4.0 - 6.0 / 3, rel=1e-6)


def test_no_noise_and_no_signal():
    assert estimated(torch.ones(4, 3), [2, 2]) == GradientNoise(0.0, 3.0)
    assert GradientNoise(0.0, 3.0).signal_to_noise(4) is None
    pure = GradientNoise(2.0, -0.5)
    assert pure.scale is None and pure.signal_to_noise(4) == 0.0
    assert predicted_memory(0.0) == (0.0, pytest.approx(math.sqrt(1 / 19)))


@pytest.mark.parametrize("rows", [[4], [2, 0], [1, 1, 1]])
def test_too_few_microbatches_are_refused(rows):
    with pytest.raises(ValueError, match="two microbatches"):
        gradient_noise([1.0, 1.0], rows, 1.0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("steps", [1, 3, 2000])
def test_noise_of_an_average_is_that_of_its_weights(decay, steps):
    """Weights (1 - b) b^j over their sum: the noise is the sum of their squares."""
    weights = torch.tensor([decay**j for j in range(steps)], dtype=torch.float64)
    expected = float((weights / weights.sum()).square().sum())
    assert averaged_noise(decay, steps) == pytest.approx(expected, rel=1e-9)
    assert averaged_noise(0.9) == pytest.approx(1 / 19)


@pytest.mark.parametrize(("steps", "decay"), [(1, 0.9), (7, 0.9), (60, 0.9), (200, 0.97)])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 5.0])
def test_the_law_holds_of_simulated_gradients(steps, decay, ratio):
    """100,000 coordinates, of which the norms fluctuate by half a percent."""
    size, generator = 100_000, torch.Generator().manual_seed(0)
    mean = torch.randn(size, generator=generator).double()
    noise = float(mean.norm()) / math.sqrt(ratio * size)
    average = torch.zeros(size, dtype=torch.float64)
    for _ in range(steps):
        average.lerp_(mean + noise * torch.randn(size, generator=generator), 1 - decay)
    gradient = mean + noise * torch.randn(size, generator=generator)
    cosine, size_ratio = predicted_memory(ratio, decay=decay, steps=steps)
    average /= 1 - decay**steps
    assert float(torch.cosine_similarity(average, gradient, dim=0)) == pytest.approx(
        cosine, abs=0.02
    )
    assert float(average.norm() / gradient.norm()) == pytest.approx(size_ratio, rel=0.02)
