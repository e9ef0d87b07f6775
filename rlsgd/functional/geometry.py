"""Where an update lies relative to the weights it changed: spectrum, subspaces, masks, other seeds.

The measures of arXiv:2511.08567 (spectral drift, rotation, principal and low-magnitude masks), the
numerical rank of arXiv:2505.11711 and its overlap between runs, and Roy and Vetterli's rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsgd.functional.tolerances import RELATIVE_TOLERANCE
from rlsgd.functional.updates import CHUNK, gram


@dataclass(frozen=True)
class Decomposition:
    """Spectrum of a matrix and its leading singular vectors.

    Args:
        squared_spectrum: [min(M, N)] float64 squared singular values, largest first.
        left: [M, K] float64 orthonormal basis of the K leading left singular vectors' span.
        right: [N, K] the same of the right ones.
    """

    squared_spectrum: Tensor
    left: Tensor
    right: Tensor


def decompose(matrix: Tensor, rank: int) -> Decomposition:
    """Spectrum and leading singular subspaces, from the smaller Gram matrix in float64.

    Singular values below about 1e-8 of the largest are lost in its rounding.

    Args:
        matrix: [M, N], any floating dtype, finite.
        rank: K; no more than min(M, N) are taken.
    """
    squares, vectors = torch.linalg.eigh(gram(matrix))
    short = vectors.flip(1)[:, :rank]  # [min(M, N), K]
    wide = matrix.shape[0] <= matrix.shape[1]
    tall = matrix.mT if wide else matrix
    chunks = tall.split(max(1, CHUNK // max(1, tall.shape[1])))
    # QR where one would divide by singular values: it also serves those that are zero.
    long = torch.linalg.qr(torch.cat([chunk.double() @ short for chunk in chunks]))[0]
    left, right = (short, long) if wide else (long, short)
    return Decomposition(squares.flip(0).clamp(min=0), left, right)


def spectral_drift(squared_initial: Tensor, squared_final: Tensor) -> float:
    """||sigma(W+) - sigma(W0)||_2 / ||sigma(W0)||_2, the NSS of arXiv:2511.08567.

    Args:
        squared_initial: [R] squared singular values of W0, largest first.
        squared_final: [R] the same of W+.

    Returns:
        nan where W0 is zero.
    """
    initial, final = squared_initial.sqrt(), squared_final.sqrt()
    norm = torch.linalg.vector_norm(initial)
    return float(torch.linalg.vector_norm(final - initial) / norm) if norm else math.nan


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Angles between two subspaces, smallest first: cos theta_i = sigma_i(first^T second).

    Small ones are taken from their sine, since a cosine near 1 has lost them (Bjorck and Golub).

    Args:
        first: [N, K] orthonormal columns, float64.
        second: [N, K] the same.

    Returns:
        [K] radians, in [0, pi/2].
    """
    product = first.mT @ second
    cosines = torch.linalg.svdvals(product).clamp(max=1)
    sines = torch.linalg.svdvals(second - first @ product).flip(0).clamp(max=1)
    return torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin())


def low_rank(matrix: Tensor, decomposition: Decomposition) -> Tensor:
    """The best approximation of rank K, [M, N] in the matrix's dtype: W V V^T = U U^T W."""
    if matrix.shape[0] <= matrix.shape[1]:
        basis = decomposition.left.to(matrix.dtype)
        return basis @ (basis.mT @ matrix)
    basis = decomposition.right.to(matrix.dtype)
    return (matrix @ basis) @ basis.mT


def largest(magnitudes: Tensor, share: float) -> Tensor:
    """Mask of the `share` of entries that are largest; all of those equal to the last of them.

    Args:
        magnitudes: not negative, any shape; float32 decides.
        share: in (0, 1]; at least one entry is taken.
    """
    count = max(1, round(share * magnitudes.numel()))
    return magnitudes >= _kth_smallest(magnitudes, magnitudes.numel() - count + 1)


def smallest(magnitudes: Tensor, share: float) -> Tensor:
    """Mask of the `share` of entries that are smallest; as `largest`."""
    count = max(1, round(share * magnitudes.numel()))
    return magnitudes <= _kth_smallest(magnitudes, count)


def _kth_smallest(magnitudes: Tensor, k: int) -> Tensor:
    """Exact, by bisection; sorting or `kthvalue` would hold several copies of an embedding."""
    bits = magnitudes.float().view(torch.int32)  # of numbers >= 0, ordered as they are
    low, high = 0, torch.iinfo(torch.int32).max
    while low < high:
        middle = (low + high) // 2
        if (bits <= middle).sum() >= k:
            high = middle
        else:
            low = middle + 1
    return torch.tensor(low, dtype=torch.int32, device=bits.device).view(torch.float32)


@dataclass(frozen=True)
class MaskOverlap:
    """How many entries two masks share. Overlaps of several tensors add up.

    Args:
        numel: entries of each mask.
        first: entries in the first mask.
        second: entries in the second mask.
        both: entries in both.
        expected: in both by chance, if the masks of each tensor were independent of each other.
    """

    numel: int = 0
    first: int = 0
    second: int = 0
    both: int = 0
    expected: float = 0.0

    def __add__(self, other: MaskOverlap) -> MaskOverlap:
        return MaskOverlap(
            self.numel + other.numel,
            self.first + other.first,
            self.second + other.second,
            self.both + other.both,
            self.expected + other.expected,
        )

    def of_first(self) -> tuple[float, float]:
        """|first & second| / |first| and what chance gives; nan for an empty mask."""
        return _ratio(self.both, self.first), _ratio(self.expected, self.first)

    def of_second(self) -> tuple[float, float]:
        """|first & second| / |second| and what chance gives; nan for an empty mask."""
        return _ratio(self.both, self.second), _ratio(self.expected, self.second)

    def jaccard(self) -> tuple[float, float]:
        """|first & second| / |first or second| and what chance gives; nan for empty masks."""
        union = self.first + self.second
        return _ratio(self.both, union - self.both), _ratio(self.expected, union - self.expected)


def overlap(first: Tensor, second: Tensor) -> MaskOverlap:
    """Count what two masks of one shape share."""
    counts = int(first.sum()), int(second.sum())
    expected = counts[0] * counts[1] / max(1, first.numel())
    return MaskOverlap(first.numel(), *counts, int((first & second).sum()), expected)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def changed_in_bf16(weight: Tensor, initial: Tensor) -> Tensor:
    """Mask of the entries that differ after both are rounded to bfloat16 (arXiv:2511.08567)."""
    return weight.bfloat16() != initial.bfloat16()


def unchanged_relative(
    weight: Tensor, initial: Tensor, *, tolerance: float = RELATIVE_TOLERANCE
) -> Tensor:
    """Mask of |w - w0| <= tolerance * max(|w|, |w0|), the bf16-aware probe of arXiv:2511.08567.

    Of weights stored in bfloat16 it is equality. Of float32 weights it is not: it sees a change of
    a thousandth, and bfloat16 rounds away most of those below 1/256.

    Args:
        weight: any shape, now; float32 decides.
        initial: same shape, at the start.
        tolerance: relative.
    """
    weight, initial = weight.float(), initial.float()
    return (weight - initial).abs() <= tolerance * torch.maximum(weight.abs(), initial.abs())


def entropy_rank(squared_spectrum: Tensor) -> float:
    """exp of the entropy of sigma / sum(sigma); 0 for a zero update (Roy and Vetterli, 2007).

    Args:
        squared_spectrum: [R] squared singular values.
    """
    values = squared_spectrum.sqrt()
    if not (total := values.sum()):
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def numerical_rank(squared_spectrum: Tensor, shape: tuple[int, ...]) -> int:
    """Singular values above max(M, N) * eps of the largest, eps that of float32.

    What `torch.linalg.matrix_rank` counts for a float32 matrix, as arXiv:2505.11711 does; float64
    spares it the rounding of a float32 decomposition.

    Args:
        squared_spectrum: [min(M, N)] squared singular values, largest first.
        shape: (M, N).
    """
    if not len(squared_spectrum):
        return 0
    values = squared_spectrum.sqrt()
    return int((values > max(shape) * torch.finfo(torch.float32).eps * values[0]).sum())


def leading_energy(squared_spectrum: Tensor, count: int) -> float:
    """Share of the sum of squares in the `count` largest singular values; 0 for a zero update.

    Args:
        squared_spectrum: [R] squared singular values, largest first.
        count: more than R take all.
    """
    total = squared_spectrum.sum()
    return float(squared_spectrum[:count].sum() / total) if total else 0.0
