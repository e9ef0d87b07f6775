"""Every measure of the update of one tensor, and what those of several come to together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

from torch import Tensor

from rlsgd.analysis.measures import Measures
from rlsgd.functional.geometry import (
    Decomposition,
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
from rlsgd.functional.tolerances import RELATIVE
from rlsgd.functional.updates import (
    CHUNK,
    SparsityCounts,
    count_unchanged,
    effective_rank,
    spectrum_for_rank,
    stable_rank,
)


@dataclass(frozen=True)
class InitialMatrix:
    """What is derived from a matrix before tuning, whatever it was tuned to.

    Args:
        low_magnitude: [M, N] mask of its smallest entries.
        principal: [M, N] mask of the largest entries of its rank-K approximation.
        decomposition: its spectrum and leading subspaces.
    """

    low_magnitude: Tensor
    principal: Tensor | None = None
    decomposition: Decomposition | None = None

    @classmethod
    def of(cls, initial: Tensor, measures: Measures) -> InitialMatrix:
        low_magnitude = smallest(initial.abs(), measures.alpha)
        if not measures.spectra:
            return cls(low_magnitude)
        decomposition = decompose(initial, measures.rank_k)
        principal = largest(low_rank(initial, decomposition).abs(), measures.alpha)
        return cls(low_magnitude, principal, decomposition)


@dataclass(frozen=True)
class TensorUpdate:
    """The measures of one tensor's update.

    Args:
        counts: entries unchanged by each criterion, and how far the rest went.
        unchanged_relative: entries that the bf16-aware probe calls unchanged.
        largest_change: max |w - w0|.
        low_magnitude: the low-magnitude mask (first) and the changed entries (second).
        principal: the principal mask (first) and the changed entries (second).
        spectral: measures by name that need singular values; of a matrix alone.
    """

    counts: SparsityCounts
    unchanged_relative: int
    largest_change: float
    low_magnitude: MaskOverlap | None = None
    principal: MaskOverlap | None = None
    spectral: dict[str, float] = field(default_factory=dict)


def measure(
    weight: Tensor, initial: Tensor, matrix: InitialMatrix | None, measures: Measures
) -> TensorUpdate:
    """Measure one tensor's update.

    Args:
        weight: now, float32, finite.
        initial: same shape, at the start.
        matrix: of `initial` if it is a matrix.
        measures: what to measure.
    """
    counts = count_unchanged(weight, initial, tolerances=measures.tolerances).as_numbers()
    relative = sum(int(unchanged_relative(*pair).sum()) for pair in _chunks(weight, initial))
    farthest = float((weight - initial).abs().max())
    if matrix is None:
        return TensorUpdate(counts, relative, farthest)
    changed = changed_in_bf16(weight, initial)
    low_magnitude = overlap(matrix.low_magnitude, changed)
    if matrix.principal is None or matrix.decomposition is None:
        return TensorUpdate(counts, relative, farthest, low_magnitude)
    principal = overlap(matrix.principal, changed)
    del changed
    spectral = _spectral(weight, initial, matrix.decomposition, measures)
    return TensorUpdate(counts, relative, farthest, low_magnitude, principal, spectral)


def _chunks(weight: Tensor, initial: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Pieces of both, so that the probe's intermediate results stay small beside them."""
    return zip(weight.reshape(-1).split(CHUNK), initial.reshape(-1).split(CHUNK), strict=True)


def _spectral(
    weight: Tensor, initial: Tensor, before: Decomposition, measures: Measures
) -> dict[str, float]:
    full = min(weight.shape)
    spectrum = spectrum_for_rank(weight - initial)
    rank, numerical = effective_rank(spectrum), numerical_rank(spectrum, tuple(weight.shape))
    after = decompose(weight, measures.rank_k)
    left = principal_angles(before.left, after.left).rad2deg()
    right = principal_angles(before.right, after.right).rad2deg()
    return {
        "effective_rank": rank,
        "effective_rank_percent": 100 * rank / full,
        "stable_rank": stable_rank(spectrum),
        "entropy_rank": entropy_rank(spectrum),
        "numerical_rank": numerical,
        "numerical_rank_percent": 100 * numerical / full,
        "leading_energy": leading_energy(spectrum, measures.rank_k),
        "spectral_drift": spectral_drift(before.squared_spectrum, after.squared_spectrum),
        "left_angle_mean_degrees": float(left.mean()),
        "left_angle_max_degrees": float(left.max()),
        "right_angle_mean_degrees": float(right.mean()),
        "right_angle_max_degrees": float(right.max()),
    }


def summary(updates: Iterable[TensorUpdate]) -> dict[str, float | int | None]:
    """The measures of several tensors together: counts are added, spectral measures averaged.

    A spectral measure is the mean over matrices, as arXiv:2602.07729 takes it. An overlap is over
    all changed entries, with the share that chance gives beside it.

    Returns:
        None for what is not defined, such as the overlap with no change at all.
    """
    updates = list(updates)
    counts = sum((update.counts for update in updates), SparsityCounts())
    found: dict[str, float | int] = {
        "tensors": len(updates),
        "weights": counts.numel,
        **counts.fractions(),
        RELATIVE: sum(update.unchanged_relative for update in updates) / counts.numel,
        **counts.distances(),
        "largest_change": max(update.largest_change for update in updates),
    }
    for name in ("low_magnitude", "principal"):
        overlaps = [part for update in updates if (part := getattr(update, name)) is not None]
        if overlaps:
            share, chance = sum(overlaps, MaskOverlap()).of_second()
            found |= {f"{name}_overlap": share, f"{name}_overlap_by_chance": chance}
    matrices = [update.spectral for update in updates if update.spectral]
    for key in matrices[0] if matrices else ():
        values = [matrix[key] for matrix in matrices if not math.isnan(matrix[key])]
        found[key] = fmean(values) if values else math.nan
    return {name: defined(value) for name, value in found.items()}


def defined(value: float | int) -> float | int | None:
    """The value, or None for nan, which JSON has no word for."""
    return None if math.isnan(value) else value
