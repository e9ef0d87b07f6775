"""Rates of equal first-order gain, which carry a learning rate from one optimizer to another.

While a run is short of its noise and its curvature, what it gains is first order: after T steps
that move the weights by D, the loss has changed by <mu, D>, with mu the mean gradient. At rate 1 an
optimizer that is given T gradients of the same distribution moves by some D_1, and a rate lr moves
by lr D_1 (weight decay aside). So two optimizers gain alike if

    lr_a <mu, D_a> = lr_b <mu, D_b>

and no step of either has to be taken to know the ratio: gradients at fixed weights are enough. With
mu taken from other gradients than those that made D, <mu, D> has no share of the noise in it. The
length of D is no such measure: an optimizer may go far in directions in which nothing is gained.
"""

from __future__ import annotations

from torch import Tensor

from rlsgd.functional.noise_scale import GradientNoise


def noise_of_products(products: Tensor, rows: float) -> GradientNoise:
    """Trace and squared mean of one row's gradient, from whole steps at the same weights.

    Unbiased: the products of different steps have the noise of neither in their mean.

    Args:
        products: [K, K] <g_i, g_j> of the steps' gradients, K >= 2.
        rows: of a step.

    Raises:
        ValueError: fewer than two steps.
    """
    count = len(products)
    if count < 2:
        raise ValueError("the noise of a gradient needs two steps or more")
    diagonal = float(products.diagonal().mean())
    squared_mean = float(products.sum() - products.diagonal().sum()) / (count * (count - 1))
    return GradientNoise((diagonal - squared_mean) * rows, squared_mean)


def matched_rate(rate: float, gain: float, other_gain: float) -> float | None:
    """The rate at which another optimizer gains what this one does.

    Args:
        rate: of this optimizer.
        gain: its first-order gain -<mu, D> at rate 1.
        other_gain: the other's.

    Returns:
        None if either gains nothing: no rate would match.
    """
    return rate * gain / other_gain if gain > 0 and other_gain > 0 else None
