"""Analysis of the update weight - initial weight of one tensor: how sparse, how far, of what rank.

A sparsity number means nothing without its dtype and tolerance, so every name here carries them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlsgd.functional.bf16_difference import ISCLOSE_ATOL
from rlsgd.functional.tolerances import ISCLOSE, TOLERANCES

CHUNK = 1 << 22  # entries that are held in float64 at a time: 32 MiB
CACHED = 1 << 17  # entries whose temporaries stay in a CPU's cache; whole ones cost ten times more
ROWS = 512  # rows that a product in float64 takes at a time


@dataclass(frozen=True)
class SparsityCounts:
    """How many entries an update left where they were, and how far it went. Several add up.

    The empty `SparsityCounts()` is the zero of that addition: `sum(parts, SparsityCounts())`.

    Args:
        numel: entries counted.
        unchanged_fp32: entries equal as float32.
        unchanged_bf16: entries equal after both are rounded to bfloat16.
        within: by tolerance, entries that moved by at most it; float32 difference.
        squared_displacement: sum of (weight - initial)^2 in float64.
        squared_initial: sum of initial^2 in float64.
        bf16_isclose: entries that `bf16_isclose` takes for unchanged.
        bf16_zero: entries whose bfloat16 difference is exactly 0.
    """

    numel: int = 0
    unchanged_fp32: int | Tensor = 0
    unchanged_bf16: int | Tensor = 0
    within: dict[str, int | Tensor] = field(default_factory=dict)
    squared_displacement: float | Tensor = 0.0
    squared_initial: float | Tensor = 0.0
    bf16_isclose: int | Tensor = 0
    bf16_zero: int | Tensor = 0

    def __add__(self, other: SparsityCounts) -> SparsityCounts:
        if self.numel and other.numel and self.within.keys() != other.within.keys():
            raise ValueError(
                "counts at different tolerances do not add up: "
                f"{sorted(self.within)} and {sorted(other.within)}"
            )
        tolerances = self.within or other.within
        return SparsityCounts(
            self.numel + other.numel,
            self.unchanged_fp32 + other.unchanged_fp32,
            self.unchanged_bf16 + other.unchanged_bf16,
            {key: self.within.get(key, 0) + other.within.get(key, 0) for key in tolerances},
            self.squared_displacement + other.squared_displacement,
            self.squared_initial + other.squared_initial,
            self.bf16_isclose + other.bf16_isclose,
            self.bf16_zero + other.bf16_zero,
        )

    def as_numbers(self) -> SparsityCounts:
        """The same in Python numbers, for whoever keeps the counts of many tensors.

        A [] tensor that stays keeps the allocator from joining the large blocks freed around it.
        """
        return SparsityCounts(
            self.numel,
            int(self.unchanged_fp32),
            int(self.unchanged_bf16),
            {key: int(count) for key, count in self.within.items()},
            float(self.squared_displacement),
            float(self.squared_initial),
            int(self.bf16_isclose),
            int(self.bf16_zero),
        )

    def fractions(self) -> dict[str, float]:
        """`unchanged_fp32`, `unchanged_bf16`, `within_<tolerance>`, and the measure of
        arXiv:2602.07729 as `bf16_difference_isclose_1e-5` and `_zero`; each in [0, 1].
        """
        if not self.numel:
            raise ValueError("no entries were counted, so there is no fraction of them")
        counts = {"unchanged_fp32": self.unchanged_fp32, "unchanged_bf16": self.unchanged_bf16}
        counts |= {f"within_{key}": count for key, count in self.within.items()}
        counts |= {ISCLOSE: self.bf16_isclose, "bf16_difference_zero": self.bf16_zero}
        return {name: int(count) / self.numel for name, count in counts.items()}

    def distances(self) -> dict[str, float]:
        """`displacement` ||w - w0||_2, and `relative_displacement` ||w - w0||_2 / ||w0||_2.

        The relative one is left out where ||w0|| is 0.
        """
        displacement = math.sqrt(float(self.squared_displacement))
        if not (initial := math.sqrt(float(self.squared_initial))):
            return {"displacement": displacement}
        return {"displacement": displacement, "relative_displacement": displacement / initial}


def _tolerance_key(tolerance: float) -> str:
    """1e-05 -> "1e-5", 0.00025 -> "2.5e-4"."""
    mantissa, exponent = f"{tolerance:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def count_unchanged(
    weight: Tensor, initial: Tensor, *, tolerances: Sequence[float] = TOLERANCES
) -> SparsityCounts:
    """Count the entries of one tensor that training left unchanged, in one pass over both.

    Args:
        weight: any shape and floating dtype, now.
        initial: same shape, at the start.
        tolerances: absolute, in units of the weight.

    Returns:
        Counts as [] float64 tensors on the device of `weight`. A nan is never unchanged.
    """
    if weight.shape != initial.shape:
        raise ValueError(
            f"weight {tuple(weight.shape)} and initial weight {tuple(initial.shape)} differ in "
            "shape; are they the same tensor of the same model?"
        )
    pairs = zip(_chunks(weight), _chunks(initial), strict=True)
    counts = torch.stack([_count_chunk(w, w0, tolerances) for w, w0 in pairs]).sum(dim=0)
    equal_fp32, equal_bf16, isclose, zero, *within, squared_displacement, squared_initial = counts
    return SparsityCounts(
        weight.numel(),
        equal_fp32,
        equal_bf16,
        dict(zip(map(_tolerance_key, tolerances), within, strict=True)),
        squared_displacement,
        squared_initial,
        isclose,
        zero,
    )


def _count_chunk(weight: Tensor, initial: Tensor, tolerances: Sequence[float]) -> Tensor:
    """[6 + T] float64: entries equal in float32 and bfloat16, close and 0 by their bfloat16
    difference, within each tolerance; two sums of squares.

    Flags are 1.0 and 0.0, not booleans: several times faster to write and add, and a sum of fewer
    than 2^24 of them is exact in float32.
    """
    now, before = weight.float(), initial.float()
    flags = torch.empty_like(now)
    equal_fp32 = torch.eq(now, before, out=flags).sum()
    now_bf16, before_bf16 = now.bfloat16(), before.bfloat16()
    equal_bf16 = torch.eq(now_bf16.float(), before_bf16.float(), out=flags).sum()
    difference = (now_bf16 - before_bf16).abs_().float()
    isclose = torch.le(difference, ISCLOSE_ATOL, out=flags).sum()
    zero = torch.eq(difference, 0.0, out=flags).sum()
    distance = (now - before).abs_()
    within = [torch.le(distance, tolerance, out=flags).sum() for tolerance in tolerances]
    exact = initial.double()
    move = weight.double() - exact
    squares = torch.dot(move, move), torch.dot(exact, exact)
    return torch.stack([equal_fp32, equal_bf16, isclose, zero, *within, *squares])


def _chunks(tensor: Tensor) -> tuple[Tensor, ...]:
    """A tensor's entries [<= CACHED] or, where each operation is a kernel launch, [<= CHUNK]."""
    return tensor.reshape(-1).split(CACHED if tensor.device.type == "cpu" else CHUNK)


def squared_norm(tensor: Tensor) -> Tensor:
    """Sum of squares [] in float64, a chunk at a time, so that no float64 copy is held."""
    chunks = (chunk.double() for chunk in _chunks(tensor))
    return torch.stack([torch.dot(chunk, chunk) for chunk in chunks]).sum()


def squared_spectrum(matrix: Tensor) -> Tensor:
    """Squared singular values of an update, largest first.

    Eigenvalues of the smaller Gram matrix in float64. Squaring loses singular values below about
    1e-8 of the largest, which hold no energy that either rank below could see.

    Args:
        matrix: [M, N], any floating dtype.

    Returns:
        [min(M, N)] float64, none negative.
    """
    if matrix.ndim != 2:
        raise ValueError(f"a spectrum needs a matrix, not a tensor of shape {tuple(matrix.shape)}")
    products = gram(matrix)
    if not torch.isfinite(products.diagonal()).all():  # the sums of squares: no second pass
        raise ValueError("the update holds values that are not finite, so it has no spectrum")
    return torch.linalg.eigvalsh(products).flip(0).clamp(min=0)


def spectrum_for_rank(matrix: Tensor, *, energy: float = 0.99) -> Tensor:
    """Squared singular values whose `effective_rank` is the one that the SVD in float64 gives.

    The Gram matrix's, unless its rounding could move the count; then the SVD's own.

    Args:
        matrix: [M, N], any floating dtype, finite.
        energy: fraction of the sum of squares, in (0, 1].

    Returns:
        [min(M, N)] float64, largest first.
    """
    squares = squared_spectrum(matrix)
    if rank_is_certain(squares, max(matrix.shape), energy=energy):
        return squares
    return torch.linalg.svdvals(matrix.double()).square()


def rank_is_certain(squared_spectrum: Tensor, longer_side: int, *, energy: float) -> bool:
    """Whether no running sum of the squares is so near the threshold that rounding decides."""
    held = squared_spectrum.cumsum(dim=0)
    if not len(held) or held[-1] == 0:
        return True
    margin = rounding_margin(longer_side, len(held))
    return bool(((held / held[-1] - energy).abs() > margin).all())


def rounding_margin(longer_side: int, shorter_side: int) -> float:
    """How far rounding can move (a running sum of squares) / (all of them) from energy * (all).

    With u = 2^-53, T the sum of all squares, L and R the sides, to first order in u: each entry of
    the computed Gram matrix is a sum of L products, so its error has Frobenius norm at most L u T
    (Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.13); eigvalsh gives the
    eigenvalues of a matrix that is another R u T away. The k largest eigenvalues together move by
    at most the trace norm of the error (Ky Fan), which is at most sqrt(R) times its Frobenius
    norm: sqrt(R) (L + R) u T, for the running sum and again for T. The SVD is that of A + F with
    ||F||_F <= (L + R) u ||A||_F, so its sums of squares move by 2 (L + R) u T, both likewise. The
    running sums and the slack of `effective_rank` add 6 R u T. All that is below
    (2 sqrt(R) + 4) (L + R) u + 6 R u <= 12 sqrt(R) (L + R) u.
    """
    return 12 * math.sqrt(shorter_side) * (longer_side + shorter_side) * 2.0**-53


def gram(matrix: Tensor) -> Tensor:
    """Gram matrix [R, R] of the shorter side of [M, N] in float64, without a float64 copy of it."""
    tall = matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix  # [max(M, N), R]
    side = tall.shape[1]
    lower = torch.zeros((side, side), dtype=torch.float64, device=matrix.device)
    # It is symmetric: six block columns from the diagonal down are 7/12 of the products.
    width = max(64, math.ceil(side / 6))
    for rows in tall.split(ROWS):
        wide = rows.double()
        for first in range(0, side, width):
            block = slice(first, first + width)
            lower[first:, block].addmm_(wide[:, first:].mT, wide[:, block])
    return lower.tril() + lower.tril(-1).mT


def effective_rank(squared_spectrum: Tensor, *, energy: float = 0.99) -> int:
    """Smallest number of singular values that hold `energy` of the sum of squares.

    arXiv:2602.07729. An absolute count: divide by min(M, N) for a fraction.

    Args:
        squared_spectrum: [R] squared singular values, largest first.
        energy: fraction of the sum of squares, in (0, 1].

    Returns:
        0 for a zero update.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1] (got {energy})")
    held = squared_spectrum.cumsum(dim=0)
    if not len(held) or held[-1] == 0:
        return 0
    # The slack is the rounding of the running sum: 99 of 100 equal values must give 99.
    slack = len(held) * torch.finfo(held.dtype).eps
    return int((held < energy * held[-1] * (1 - slack)).sum()) + 1


def stable_rank(squared_spectrum: Tensor) -> float:
    """Sum of the squared singular values over the largest; 0 for a zero update.

    Args:
        squared_spectrum: [R] squared singular values, largest first.
    """
    if not len(squared_spectrum) or squared_spectrum[0] == 0:
        return 0.0
    return float(squared_spectrum.sum() / squared_spectrum[0])


def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """Names of those with an entry that is infinite or not a number.

    No second tensor of the size of one is made, and the device is asked once.
    """
    filled = {name: t.detach() for name, t in tensors.items() if t.numel()}  # not all on every rank
    if not filled:
        return []
    finite = torch.stack([torch.isfinite(torch.stack(t.aminmax())).all() for t in filled.values()])
    return [name for name, good in zip(filled, finite.tolist(), strict=True) if not good]
