"""Analysis of the update weight - initial weight of one tensor: how sparse, how far, of what rank.

A sparsity number means nothing without its dtype and tolerance, so every name here carries them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

TOLERANCES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
CHUNK = 1 << 22  # entries that are held in float64 at a time: 32 MiB


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
    """

    numel: int = 0
    unchanged_fp32: int | Tensor = 0
    unchanged_bf16: int | Tensor = 0
    within: dict[str, int | Tensor] = field(default_factory=dict)
    squared_displacement: float | Tensor = 0.0
    squared_initial: float | Tensor = 0.0

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
        )

    def fractions(self) -> dict[str, float]:
        """`unchanged_fp32`, `unchanged_bf16` and `within_<tolerance>`, each in [0, 1]."""
        if not self.numel:
            raise ValueError("no entries were counted, so there is no fraction of them")
        counts = {"unchanged_fp32": self.unchanged_fp32, "unchanged_bf16": self.unchanged_bf16}
        counts |= {f"within_{key}": count for key, count in self.within.items()}
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
    """Count the entries of one tensor that training left unchanged.

    Args:
        weight: any shape and floating dtype, now.
        initial: same shape, at the start.
        tolerances: absolute, in units of the weight.

    Returns:
        Counts as [] tensors on the device of `weight`. A nan is never unchanged.
    """
    if weight.shape != initial.shape:
        raise ValueError(
            f"weight {tuple(weight.shape)} and initial weight {tuple(initial.shape)} differ in "
            "shape; are they the same tensor of the same model?"
        )
    distance = (weight.float() - initial.float()).abs()
    return SparsityCounts(
        weight.numel(),
        (weight.float() == initial.float()).sum(),
        (weight.bfloat16() == initial.bfloat16()).sum(),
        {_tolerance_key(tolerance): (distance <= tolerance).sum() for tolerance in tolerances},
        squared_distance(weight, initial),
        squared_norm(initial),
    )


def squared_norm(tensor: Tensor) -> Tensor:
    """Sum of squares [] in float64, a chunk at a time, so that no float64 copy is held."""
    chunks = tensor.reshape(-1).split(CHUNK)
    return torch.stack([chunk.double().square().sum() for chunk in chunks]).sum()


def squared_distance(weight: Tensor, initial: Tensor) -> Tensor:
    """Sum of (weight - initial)^2 [] in float64, a chunk at a time; shapes are equal."""
    pairs = zip(weight.reshape(-1).split(CHUNK), initial.reshape(-1).split(CHUNK), strict=True)
    return torch.stack([(w.double() - w0.double()).square().sum() for w, w0 in pairs]).sum()


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
    if not torch.isfinite(matrix).all():
        raise ValueError("the update holds values that are not finite, so it has no spectrum")
    return torch.linalg.eigvalsh(gram(matrix)).flip(0).clamp(min=0)


def gram(matrix: Tensor) -> Tensor:
    """Gram matrix [R, R] of the shorter side of [M, N] in float64, without a float64 copy of it."""
    tall = matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix  # [max(M, N), R]
    chunks = tall.split(max(1, CHUNK // max(1, tall.shape[1])))
    size = (tall.shape[1], tall.shape[1])
    total = torch.zeros(size, dtype=torch.float64, device=matrix.device)
    for chunk in chunks:
        wide = chunk.double()
        total += wide.mT @ wide
    return total


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


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is infinite or not a number, without a second tensor of its size."""
    if not tensor.numel():  # a rank's part of a small weight
        return True
    return all(torch.isfinite(extreme).item() for extreme in tensor.detach().aminmax())
