"""Paired t-tests between arms, from the paired differences of `rlsgd.study.summary`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from rlsgd.report.sources import ReportedRun
from rlsgd.study.summary import T_QUANTILES, ArmSummary, Estimate, paired_difference

MEASURES = (("score", "final"), ("update", "unchanged_bf16"))


@dataclass(frozen=True)
class Comparison:
    """One arm minus another over the seeds where both saw the same prompts.

    Args:
        arm: Name of the first.
        baseline: Name of the arm that is taken off.
        differences: One for each of `MEASURES`, None where nothing can be paired.
        p_values: Of each difference, adjusted over all comparisons; None with fewer than 2 seeds.
    """

    arm: str
    baseline: str
    differences: tuple[Estimate | None, ...]
    p_values: tuple[float | None, ...]


def compare(
    arms: Sequence[ArmSummary], runs: Sequence[ReportedRun], baseline: str | None = None
) -> list[Comparison]:
    """Test every pair of arms, or each against the baseline alone.

    Args:
        arms: One summary for each, as `representatives` gives them.
        runs: All reported runs, which know what prompts they saw.
        baseline: Name of an arm.
    """
    problems = {(run.record["name"], run.record["seed"]): run.problems for run in runs}
    if baseline is None:
        pairs = [(later, first) for first, later in combinations(arms, 2)]
    else:
        (base,) = (arm for arm in arms if arm["name"] == baseline)
        pairs = [(arm, base) for arm in arms if arm is not base]
    differences = [
        tuple(paired_difference(*_same_problems(*pair, problems), *place) for place in MEASURES)
        for pair in pairs
    ]
    p_values = [holm([p_value(d[i]) for d in differences]) for i in range(len(MEASURES))]
    return [
        Comparison(arm["name"], other["name"], found, adjusted)
        for (arm, other), found, adjusted in zip(
            pairs, differences, zip(*p_values, strict=True), strict=True
        )
    ]


def p_value(difference: Estimate | None) -> float | None:
    """Two-sided p of the paired t-test whose 95% interval the estimate is.

    None without an interval. Differences that are all equal and not 0 have p = 0.
    """
    if difference is None or difference.half_width is None:
        return None
    if difference.half_width == 0:
        return float(difference.mean == 0)
    freedom = difference.num_seeds - 1
    quantile = T_QUANTILES[min(freedom, len(T_QUANTILES)) - 1]
    return student_p(quantile * difference.mean / difference.half_width, freedom)


def student_p(t: float, freedom: int) -> float:
    """P(|T| > |t|) of Student's t with a whole number of degrees of freedom.

    The finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    if freedom == 1:
        total = 0.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(0.0, 1 - inside)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979): the family-wise error stays below any chosen level.

    Example:
        `holm([0.01, 0.04, 0.03])` is `[0.03, 0.06, 0.06]`.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


def _same_problems(
    arm: ArmSummary, other: ArmSummary, problems: dict[tuple[str, int], str]
) -> tuple[ArmSummary, ArmSummary]:
    """Both arms with the seeds at which the same prompts were drawn."""
    seeds = {
        run["seed"]
        for run in arm.runs
        if problems.get((arm["name"], run["seed"])) == problems.get((other["name"], run["seed"]))
    }
    kept = [ArmSummary(tuple(r for r in a.runs if r["seed"] in seeds)) for a in (arm, other)]
    return kept[0], kept[1]
