"""The gradient's noise scale, and what an average of gradients can remember at it.

A step averages the gradients of N rows, which have mean mu and covariance S. The noise scale
B = tr(S) / ||mu||^2 (arXiv:1812.06162, "simple") is the number of rows at which the noise of a step
is as large as its signal, and r = N / B is the signal-to-noise ratio of one. An exponential average
with decay b of the gradients before, m, has the same mean and tr(S) / N times
k = (1 - b) / (1 + b) as its noise. While mean and covariance stay what they are,

    cos(m, g) = r / sqrt((r + 1) (r + k))        ||m|| / ||g|| = sqrt((r + k) / (r + 1))

up to the fluctuation of the norms, which is small in many dimensions. At b = 0.9, k = 1/19: below
r = 1/19 momentum remembers noise alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GradientNoise:
    """Sums from which the noise scale follows. Several add up: the parts of a model, or steps.

    A ratio of sums over steps is far less biased than a mean of ratios, whose denominator may come
    out near 0 or below.

    Args:
        trace: estimate of tr(S), the summed variance of one row's gradient; unbiased.
        squared_mean: estimate of ||mu||^2; unbiased, so that it may be negative.
    """

    trace: float = 0.0
    squared_mean: float = 0.0

    def __add__(self, other: GradientNoise) -> GradientNoise:
        return GradientNoise(self.trace + other.trace, self.squared_mean + other.squared_mean)

    @property
    def scale(self) -> float | None:
        """B in rows; None where no signal was found in the noise."""
        return self.trace / self.squared_mean if self.squared_mean > 0 else None

    def signal_to_noise(self, rows: float) -> float | None:
        """r of a step of so many rows; None where there is no noise, 0 where there is no signal."""
        return max(0.0, self.squared_mean) * rows / self.trace if self.trace > 0 else None


def gradient_noise(
    squared_parts: Sequence[float], rows: Sequence[int], squared_total: float
) -> GradientNoise:
    """Unbiased estimates of tr(S) and ||mu||^2 from the microbatches of one step.

    With n_i rows and mean gradient G_i in microbatch i of k, N rows and the mean gradient G in all,
    tr(S) is estimated by sum n_i ||G_i - G||^2 / (k - 1), and ||mu||^2 by ||G||^2 - tr(S) / N.
    Rows are taken for independent. Where those of a microbatch are not (completions of one prompt,
    compared with each other), what is measured is the noise of a microbatch in units of rows.

    Args:
        squared_parts: ||s_i||^2 of each microbatch's share s_i of the gradient, which sum to G.
        rows: n_i.
        squared_total: ||G||^2.

    Raises:
        ValueError: fewer than two microbatches, or one without rows.
    """
    if len(squared_parts) != len(rows) or len(rows) < 2 or min(rows) < 1:
        raise ValueError("the noise of a gradient needs two microbatches or more, each with rows")
    total = sum(rows)
    # n_i ||G_i||^2 is N^2 / n_i ||s_i||^2
    between = sum(total**2 / n * part for n, part in zip(rows, squared_parts, strict=True))
    trace = (between - total * squared_total) / (len(rows) - 1)
    return GradientNoise(trace, squared_total - trace / total)


def averaged_noise(decay: float, steps: float = math.inf) -> float:
    """k: the noise of an exponential average of `steps` gradients, in units of one gradient's.

    Args:
        decay: b of m <- b m + (1 - b) g, from m = 0; in [0, 1).
        steps: gradients averaged so far; after few the average is hardly one.

    Returns:
        (1 - b) (1 + b^t) / ((1 + b) (1 - b^t)) for t steps.
    """
    if not 0 <= decay < 1 or steps < 1:
        raise ValueError(f"needs a decay in [0, 1) and a step (got {decay} and {steps})")
    rest = decay**steps
    return (1 - decay) * (1 + rest) / ((1 + decay) * (1 - rest))


def predicted_memory(
    signal_to_noise: float, *, decay: float = 0.9, steps: float = math.inf
) -> tuple[float, float]:
    """cos(m, g) and ||m|| / ||g|| to expect of the average before a step and the step's gradient.

    Example:
        32 rows at a noise scale of 19: `predicted_memory(32 / 19)` is (0.780, 0.804).

    Args:
        signal_to_noise: r, not negative.
        decay: of the average.
        steps: gradients in it; the average is taken to be corrected for its start at 0.
    """
    r, noise = signal_to_noise, averaged_noise(decay, steps)
    return r / math.sqrt((r + 1) * (r + noise)), math.sqrt((r + noise) / (r + 1))
