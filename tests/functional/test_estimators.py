import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from rlsgd.functional.estimators import avg_at_k, bootstrap_interval, majority_at_k, pass_at_k


def test_avg_at_k_by_hand():
    correct = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    assert avg_at_k(correct).tolist() == [0.25, 0.75, 0.0]


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(n):
    for k in range(1, n + 1):
        estimated = pass_at_k(n, torch.arange(n + 1), k).tolist()
        for c in range(n + 1):
            subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
            share = sum(max(subset) for subset in subsets) / len(subsets)
            assert estimated[c] == pytest.approx(share, rel=1e-14, abs=0), (n, c, k)


def test_pass_at_1_is_avg_and_pass_at_n_is_any():
    correct = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
    torch.testing.assert_close(pass_at_k(3, correct.sum(1), 1), avg_at_k(correct))
    assert pass_at_k(3, correct.sum(1), 3).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("n", "c", "k"), [(1000, 3, 500), (2048, 1, 2), (4096, 2000, 2048)])
def test_pass_at_k_where_binomials_overflow(n, c, k):
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, torch.tensor([c]), k).item() == pytest.approx(float(exact), rel=1e-11)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_what_is_no_draw(n, c, k):
    with pytest.raises(ValueError):
        pass_at_k(n, torch.tensor([c]), k)


def test_majority_by_hand():
    answers = [
        ["4", "4", "5"],  # 4 wins and is right
        ["4", "5", "5"],  # 5 wins and is wrong
        ["4", "5", "6"],  # three tied, one right
        ["4", None, None],  # None does not vote
        [None, None, None],
        ["4", "4", "4"],  # one text, correct in two completions of three
    ]
    correct = [[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1]]
    expected = [1.0, 0.0, 1 / 3, 1.0, 0.0, 2 / 3]
    assert majority_at_k(answers, torch.tensor(correct)).tolist() == pytest.approx(expected, 1e-15)


def test_majority_is_the_expectation_over_a_random_choice_among_ties():
    answers = list(itertools.product(("a", "b", "c", None), repeat=4))
    right = "b"
    correct = torch.tensor([[answer == right for answer in row] for row in answers])
    expected = []
    for row in answers:
        counts = {text: row.count(text) for text in "abc" if text in row}
        tied = [text for text in counts if counts[text] == max(counts.values())]
        expected.append(sum(text == right for text in tied) / len(tied) if tied else 0.0)
    assert set(expected) == {0.0, 1 / 3, 1 / 2, 1.0}
    assert majority_at_k(answers, correct).tolist() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("constant", [0.0, 0.25, 1.0])
def test_the_interval_of_a_constant_is_the_constant(constant):
    low, high = bootstrap_interval(torch.full((7,), constant), seed=3)
    assert (low.item(), high.item()) == (constant, constant)


def test_the_interval_equals_numpy_on_the_same_resamples():
    values = [0.0, 1.0, 0.25, 1.0, 0.5]
    generator = torch.Generator().manual_seed(11)
    indices = [torch.randint(5, (5,), generator=generator).numpy() for _ in range(40)]
    means = np.array(values)[np.stack(indices)].mean(1)
    low, high = bootstrap_interval(torch.tensor(values), samples=40, level=0.8, seed=11)
    expected = np.percentile(means, [10, 90])
    np.testing.assert_allclose([low.item(), high.item()], expected, rtol=1e-14)
    assert expected[0] < expected[1]


def test_the_interval_of_a_coin():
    """Resampled means of (0, 1) are 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    coin = torch.tensor([0.0, 1.0])
    ends = {level: bootstrap_interval(coin, level=level, seed=0) for level in (0.4, 0.6)}
    assert [end.item() for end in ends[0.4]] == [0.5, 0.5]  # quantiles 0.3 and 0.7
    assert [end.item() for end in ends[0.6]] == [0.0, 1.0]  # quantiles 0.2 and 0.8


@pytest.mark.parametrize(
    ("values", "options"),
    [([], {}), ([[1.0]], {}), ([1.0], {"samples": 0}), ([1.0], {"level": 1.0})],
)
def test_the_interval_refuses_what_it_cannot_resample(values, options):
    with pytest.raises(ValueError):
        bootstrap_interval(torch.tensor(values), seed=0, **options)
