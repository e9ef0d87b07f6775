"""Runs compared where a growing quantity, such as displacement, has the same value in all of them.

Optimizers at their own rates move the weights by different lengths, and what is changed by a long
way is changed more visibly. At equal displacement that explanation is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rlsgd.study.arms import Study
from rlsgd.study.results import REWARD, Rows, Series, epoch_series
from rlsgd.study.scores import SCORES

CURVES = (
    "update/unchanged_fp32",
    "update/unchanged_bf16",
    "update/within_1e-5",
    "update/effective_rank_percent",
    REWARD,
)


def add_matched(
    study: Study, runs: Sequence[dict[str, Any]], metrics: Sequence[Rows]
) -> dict[str, Any] | None:
    """Give every finished run its curves at the largest value of the metric that all reached.

    Between two measured epochs a curve is a straight line in that metric; before the first it is
    not known.

    Args:
        study: Its `match` names the metric.
        runs: The entries of `results.json`; each gets `matched`, its values by metric and the
            `epoch` (a fraction) where it was there.
        metrics: The metrics.csv rows of each.

    Returns:
        The `column` and the value `at` which runs are compared; None if none measured it.
    """
    if study.match is None:
        return None
    paths = [
        epoch_series(rows, study.match) if run["status"] == "finished" else {}
        for run, rows in zip(runs, metrics, strict=True)
    ]
    reached = [max(path.values()) for path in paths if path]
    if not reached:
        return None
    at = min(reached)
    columns = (*CURVES, SCORES[study.score].column)
    for run, rows, path in zip(runs, metrics, paths, strict=True):
        curves = {column: epoch_series(rows, column) for column in columns}
        curves["epoch"] = {epoch: float(epoch) for epoch in path}
        run["matched"] = {name: crossing(path, curve, at) for name, curve in curves.items()}
    return {"column": study.match, "at": at}


def crossing(path: Series, curve: Series, at: float) -> float | None:
    """`curve` where `path` first reaches `at`, linear between epochs that both know.

    Example:
        `crossing({1: 2.0, 2: 4.0}, {1: 10.0, 2: 20.0}, 3.0)` is 15.
    """
    epochs = sorted(path.keys() & curve.keys())
    if epochs and path[epochs[0]] == at:
        return curve[epochs[0]]
    for before, after in pairwise(epochs):
        if path[before] < at <= path[after]:
            share = (at - path[before]) / (path[after] - path[before])
            return curve[before] + share * (curve[after] - curve[before])
    return None
