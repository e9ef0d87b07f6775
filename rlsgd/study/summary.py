"""Numbers over seeds: means, intervals, paired differences, the best rate of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rlsgd.study.scores import Score

# 97.5% quantiles of Student's t for 1, 2, ... 30 degrees of freedom.
# fmt: off
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half the width of its 95% interval (None with one seed)."""

    mean: float
    half_width: float | None
    num_seeds: int


@dataclass(frozen=True)
class ArmSummary:
    """All runs of one arm: the entries of `results.json` that share a name."""

    runs: tuple[dict[str, Any], ...]

    def __getitem__(self, key: str) -> Any:
        """What all runs share: name, sweep, optimizer, learning_rate, precision."""
        return self.runs[0][key]

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The runs that count in every mean."""
        return [run for run in self.runs if run["status"] == "finished"]

    def estimate(self, group: str, key: str) -> Estimate | None:
        """Mean and interval over the finished seeds; None unless every one has the number."""
        values = [run[group][key] for run in self.finished]
        return None if not values or None in values else mean_interval(values)

    def evaluation(self, name: str) -> dict[str, Estimate]:
        """Metrics of an evaluation over the finished seeds; none unless every one has them."""
        found = [(run.get("evaluations") or {}).get(name) for run in self.finished]
        if not found or None in found:
            return {}
        return {metric: mean_interval([one[metric] for one in found]) for metric in found[0]}  # pyright: ignore[reportOptionalSubscript, reportOptionalIterable]

    def mean(self, group: str, key: str) -> float | None:
        """The mean alone."""
        found = self.estimate(group, key)
        return found.mean if found else None


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean and 95% t-interval, mean +- t(n - 1) s / sqrt(n), of independent values.

    Above 31 values the quantile for 30 degrees of freedom is kept: slightly too wide.

    Example:
        `mean_interval([1, 2, 3])` is 2 +- 4.303 * 1 / sqrt(3) = 2 +- 2.484.
    """
    number = len(values)
    if number < 2:
        return Estimate(fmean(values), None, number)
    quantile = T_QUANTILES[min(number - 1, len(T_QUANTILES)) - 1]
    return Estimate(fmean(values), quantile * stdev(values) / math.sqrt(number), number)


def summarise(runs: Sequence[dict[str, Any]]) -> list[ArmSummary]:
    """The arms of `results.json`, in order of appearance."""
    names = dict.fromkeys(run["name"] for run in runs)
    return [ArmSummary(tuple(run for run in runs if run["name"] == name)) for name in names]


def sweeps(arms: Sequence[ArmSummary]) -> dict[str, list[ArmSummary]]:
    """The swept arms with their learning rates, smallest first."""
    names = dict.fromkeys(arm["sweep"] for arm in arms if arm["sweep"] is not None)
    return {
        name: sorted(
            (arm for arm in arms if arm["sweep"] == name), key=lambda arm: arm["learning_rate"]
        )
        for name in names
    }


BEST_RULE = (
    "best mean final {title} ({direction}); ties: higher mean reward of the last epoch; ties:"
    " smaller learning rate. A rate at which a seed diverged or failed is never the best."
)


def best_rule(score: Score) -> str:
    """`BEST_RULE` in words for one score."""
    return BEST_RULE.format(title=score.title, direction="highest" if score.sign > 0 else "lowest")


def best_rate(rates: Sequence[ArmSummary], score: Score) -> ArmSummary | None:
    """The best of a sweep by `BEST_RULE`, or None where no rate qualifies."""
    candidates = [
        (score.sign * final, _or_lowest(arm.mean("reward", "last")), -arm["learning_rate"], arm)
        for arm in rates
        if len(arm.finished) == len(arm.runs) and (final := arm.mean("score", "final")) is not None
    ]
    return max(candidates, key=lambda candidate: candidate[:3])[3] if candidates else None


def representatives(arms: Sequence[ArmSummary], score: Score) -> list[ArmSummary]:
    """One summary for each arm of the study file: itself, or the best rate of its sweep."""
    best = {name: best_rate(rates, score) for name, rates in sweeps(arms).items()}
    chosen = (best[arm["sweep"]] if arm["sweep"] else arm for arm in arms)
    return list({arm["name"]: arm for arm in chosen if arm is not None}.values())


def paired_difference(
    arm: ArmSummary, baseline: ArmSummary, group: str = "score", key: str = "final"
) -> Estimate | None:
    """A number of `arm`, its final score by default, minus that of `baseline`, seed by seed.

    Seeds that did not finish in both, or have no such number, are left out.
    """
    own, base = ({r["seed"]: r[group][key] for r in a.finished} for a in (arm, baseline))
    differences = [
        value - base[seed]
        for seed, value in own.items()
        if value is not None and base.get(seed) is not None
    ]
    return mean_interval(differences) if differences else None


def _or_lowest(value: float | None) -> float:
    return -math.inf if value is None else value
