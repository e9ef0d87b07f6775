"""Statistics of studies' results, and the numbers that findings are written with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import torch
from safetensors.torch import load_file
from scipy.stats import t as student
from torch import Tensor

from rlsgd.functional.updates import count_unchanged
from rlsgd.models.loading import EMBEDDED
from rlsgd.study.summary import ArmSummary, Estimate, paired_difference
from tools.findings_tables import DOCS, MINUS, shown, study, values


def difference(name: str, arm: str, minus: str) -> Estimate:
    """Final score of an arm minus another's, paired by seed."""
    found = paired_difference(study(name)[arm], study(name)[minus])
    assert found is not None
    return found


def p_value(name: str, arm: str, minus: str) -> float:
    """Two-sided, of a paired t-test over seeds."""
    own, base = (values(study(name)[a], "score.final") for a in (arm, minus))
    differences = [a - b for a, b in zip(own, base, strict=True)]
    statistic = fmean(differences) / (stdev(differences) / math.sqrt(len(differences)))
    return float(2 * student.sf(abs(statistic), len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the order given.

    The k-th smallest of n is multiplied by n - k + 1; none is smaller than the one before it.

    Example:
        `holm([0.01, 0.04, 0.03])` is [0.03, 0.06, 0.06].
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def smallest_problem_interval(gain: float, problems: int) -> float:
    """Half a 95% interval over problems of a paired gain, where not one problem got worse.

    The variance of a problem's difference is the share that changed minus the gain squared, and no
    fewer than the gain itself can have changed: the true interval is at least as wide.
    """
    return 1.96 * math.sqrt((abs(gain) - gain**2) / problems)


def points(found: Estimate, digits: int = 2, *, sign: bool = True) -> str:
    return shown(found, 100, digits, sign=sign)


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}".replace("-", MINUS)


def embedded_weights() -> Tensor:
    """Every weight of the embedded model in one [N] float32."""
    tensors = load_file(EMBEDDED / "model.safetensors")
    return torch.cat([tensors[name].float().flatten() for name in sorted(tensors)])


def moved(weights: Tensor, size: float) -> dict[str, float]:
    """Shares unchanged after a move N(0, size^2) of every weight."""
    step = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)) * size
    return count_unchanged(weights + step, weights).fractions()


def available() -> set[str]:
    return {file.parent.name for file in DOCS.glob("*/results.json")}


def edge(rates: Sequence[ArmSummary], best: ArmSummary) -> str | None:
    """Which end of a grid, smallest rate first, its best rate is."""
    if best is rates[0]:
        return "lowest"
    return "highest" if best is rates[-1] else None
