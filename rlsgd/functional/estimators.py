"""Estimates of accuracy from several sampled completions of each problem, and their uncertainty.

P = problems, n = completions sampled for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def avg_at_k(correct: Tensor) -> Tensor:
    """Share of correct completions of each problem.

    Args:
        correct: [P, k], 1 where a completion is correct, else 0.

    Returns:
        [P], float64.
    """
    return correct.double().mean(1)


def pass_at_k(num_samples: int, num_correct: Tensor, k: int) -> Tensor:
    """Unbiased estimate of the chance that at least one of k completions is correct.

    1 - C(n - c, k) / C(n, k) (arXiv:2107.03374, equation 1): the share of the k-subsets of the n
    completions that have a correct one. It is computed as a product, so nothing overflows.

    Args:
        num_samples: n, completions of each problem.
        num_correct: c, [P], how many of them are correct.
        k: at most n.

    Returns:
        [P], float64.

    Raises:
        ValueError: k is not between 1 and n, or some c not between 0 and n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@k needs a k from 1 to the {num_samples} samples; got {k}")
    if ((num_correct < 0) | (num_correct > num_samples)).any():
        raise ValueError(f"some number of correct samples is not between 0 and {num_samples}")
    i = torch.arange(1, num_samples + 1, dtype=torch.float64, device=num_correct.device)
    # C(n - c, k) / C(n, k) is the product of 1 - k / i over i from n - c + 1 to n. If fewer than k
    # are wrong, i = k is among them and gives the 0; the negative factors below it must not matter.
    factors = (1 - k / i).clamp(min=0)
    counted = i > num_samples - num_correct.unsqueeze(1)  # [P, n]
    return 1 - torch.where(counted, factors, 1.0).prod(1)


def majority_at_k(answers: Sequence[Sequence[str | None]], correct: Tensor) -> Tensor:
    """Correctness of each problem's most frequent answer (self-consistency, arXiv:2203.11171).

    A completion without an answer (None) does not vote; a problem without any vote counts 0. Among
    tied answers one is drawn at random in expectation, so two tied answers of which one is correct
    give 0.5. Should completions with one answer differ in correctness, that answer has their mean.

    Args:
        answers: P lists of k answers, equal texts being the same answer.
        correct: [P, k], 1 where a completion is correct, else 0.

    Returns:
        [P], float64.
    """
    majorities = []
    for texts, marks in zip(answers, correct.double(), strict=True):
        votes: Counter[str | None] = Counter(text for text in texts if text is not None)
        most = max(votes.values(), default=0)
        # tied answers have equally many completions: their mean is the mean of the answers' means
        pairs = zip(texts, marks, strict=True)
        won = [mark for text, mark in pairs if most and votes[text] == most]
        majorities.append(torch.stack(won).mean() if won else marks.new_zeros(()))
    return torch.stack(majorities)


def bootstrap_interval(
    values: Tensor, *, samples: int = 2000, level: float = 0.95, seed: int
) -> tuple[Tensor, Tensor]:
    """Percentile bootstrap interval of a mean over problems (Efron, 1979).

    Problems are drawn with replacement, so the interval is about other problems of the same kind,
    not about other completions of the same ones. It has no width where all values are equal.

    Args:
        values: [P], one number for each problem.
        samples: resamples.
        level: coverage.
        seed: of the resampling, which is done on the CPU and so is the same on every device.

    Returns:
        Low end [] and high end [], float64, with quantiles interpolated linearly.

    Raises:
        ValueError: there is no value, or samples or level make no sense.
    """
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"a bootstrap needs one value for each problem; got {list(values.shape)}")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"samples must be positive and level in (0, 1); got {samples}, {level}")
    values = values.cpu().double()
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    means = torch.stack(  # one resample at a time: the indices of all might fill the memory
        [values[torch.randint(count, (count,), generator=generator)].mean() for _ in range(samples)]
    )
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return low, high
