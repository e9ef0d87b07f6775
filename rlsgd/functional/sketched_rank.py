"""Bounds on the effective rank of a matrix too large for its spectrum, from a random subspace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlsgd.functional.updates import ROWS, rounding_margin

COLUMNS = 256


@dataclass(frozen=True)
class RankBounds:
    """What a sketch says of an effective rank.

    Args:
        low: the effective rank is at least this.
        high: and at most this.
        outside: share of the sum of squares outside the sketched subspace, in [0, 1]. The bounds
            meet as it goes to 0; where it is above 1 - energy, `low` says little.
    """

    low: int
    high: int
    outside: float


def sketched_rank(
    matrix: Tensor, *, energy: float = 0.99, columns: int = COLUMNS, seed: int = 0
) -> RankBounds:
    """Bounds on the effective rank that hold whatever subspace was drawn; chance sets their width.

    Let A be the matrix with its shorter side R as columns, T = ||A||_F^2, and Q [R, K] an
    orthonormal basis of A^T A Omega with Omega Gaussian: a randomised range finder with one power
    iteration (Halko, Martinsson, Tropp, arXiv:0909.4061, algorithm 4.3), in two passes over A.
    `rank_bounds` then needs only the eigenvalues of (A Q)^T (A Q), and T.

    torch.svd_lowrank finds the same subspace, but draws from the global random numbers and needs
    all of A in float64.

    Args:
        matrix: [M, N], any floating dtype, finite.
        energy: fraction of the sum of squares, in (0, 1].
        columns: K, the dimension of the subspace; time and memory grow in proportion.
        seed: of Omega.
    """
    tall = matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix  # [L, R]
    side = tall.shape[1]
    generator = torch.Generator().manual_seed(seed)
    shape = (side, min(columns, side))
    omega = torch.randn(shape, generator=generator, dtype=torch.float64).to(matrix.device)
    image, total = torch.zeros_like(omega), omega.new_zeros(())
    for rows in tall.split(ROWS):
        wide = rows.double()
        image.addmm_(wide.mT, wide @ omega)
        total += wide.square().sum()
    basis = torch.linalg.qr(image)[0]
    inner = omega.new_zeros((shape[1], shape[1]))
    for rows in tall.split(ROWS):
        part = rows.double() @ basis
        inner.addmm_(part.mT, part)
    squares = torch.linalg.eigvalsh(inner).flip(0).clamp(min=0)
    return rank_bounds(squares.cpu(), float(total), (tall.shape[0], side), energy=energy)


def rank_bounds(
    squares: Tensor, total: float, shape: tuple[int, int], *, energy: float
) -> RankBounds:
    """Bounds on the effective rank r of A, from its image on a subspace.

    Let s_i be the eigenvalues of A^T A, b_i those of Q^T A^T A Q, S_i and B_i their running sums,
    and T = S_R. r is the smallest i with S_i >= energy T.

    `high`: S_i >= B_i, because the eigenvalues interlace (Poincare). The next j of the R - i that
    are left hold at least their average, so S_{i+j} >= S_i + (T - S_i) j / (R - i), which grows
    with S_i and hence holds with B_i in its place. Each i gives the j that reaches the threshold.

    `low`: A A^T = (A Q)(A Q)^T + E E^T with E = A (I - Q Q^T) and ||E||_F^2 = T - B_K. The largest
    i eigenvalues of a sum are at most those of both parts (Ky Fan), so S_i <= B_i + T - B_K, which
    must reach the threshold.

    Both thresholds are set apart by what rounding can move, see `rounding_margin`.

    Args:
        squares: [K] the b_i, largest first.
        total: T.
        shape: (L, R), longer side first.
        energy: in (0, 1].
    """
    longer, side = shape
    if total == 0:
        return RankBounds(0, 0, 0.0)
    held = torch.cat([squares.new_zeros(1), squares.cumsum(dim=0)]) / total  # [K + 1]: B_i / T
    outside = max(0.0, 1.0 - float(held[-1]))
    margin = rounding_margin(longer, side)
    low = int((held + outside < energy - margin).sum())
    found = torch.arange(len(held))
    wanted = (energy + margin - held).clamp(min=0)
    left = (1 - held).clamp(min=wanted)  # no more than all that are left
    further = torch.where(wanted > 0, (wanted * (side - found) / left).ceil(), 0)
    high = int((found + further).min())
    return RankBounds(max(low, 1), high, outside)
