"""The figures of the page: small enough to be read on a phone, fine enough for print."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from rlsgd.report.sources import ReportedRun
from rlsgd.study.axes import possible_values, whole_epochs
from rlsgd.study.plots import CURVES, learning_rate_figure, memory_figure, palette
from rlsgd.study.results import Series, epoch_series
from rlsgd.study.scores import Score
from rlsgd.study.summary import ArmSummary, Estimate, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 4.8, 3.6, 200  # inches, inches, pixels an inch: 960 x 720 pixels
_LEGEND_COLUMNS = 3


def draw(
    runs: Sequence[ReportedRun],
    arms: Sequence[ArmSummary],
    representatives: Sequence[ArmSummary],
    score: Score,
) -> dict[str, tuple[str, bytes]]:
    """Draw every figure that the runs have numbers for.

    Args:
        runs: With their metrics.
        arms: All of them, for the learning rates.
        representatives: Those drawn as curves: of a sweep the best rate.
        score: What decides.

    Returns:
        Title and PNG of each figure, by a name for its file.
    """
    outcome = (f"Validation: {score.title}", score.column, score.label, score.scale)
    figures: dict[str, tuple[str, Figure | None]] = {}
    for name, (title, column, label, scale) in {score.name: outcome, **CURVES}.items():
        series = {
            (run.record["name"], run.record["seed"]): {
                epoch: scale * value for epoch, value in epoch_series(run.metrics, column).items()
            }
            for run in runs
        }
        limits = {score.name: score.limits, "unchanged_bf16": (0.0, 100.0)}.get(name)
        figures[name] = (title, _curves(representatives, series, label, limits))
    title = f"Final {score.title} and weights unchanged (bf16 view): one dot for each run"
    figures["tradeoff"] = (title, _tradeoff(representatives, score))
    title = f"Final {score.title} by learning rate (bars: 95% interval; x: a run did not finish)"
    figures["learning_rates"] = (title, learning_rate_figure(arms, score))
    title = "Memory of weights, gradients and optimizer state"
    figures["memory"] = (title, memory_figure(representatives))
    return {
        name: (title, _png(figure))
        for name, (title, figure) in figures.items()
        if figure is not None
    }


def band(by_seed: Sequence[Series]) -> dict[int, Estimate]:
    """Mean and 95% interval at every epoch that all seeds have."""
    shared = set.intersection(*(set(values) for values in by_seed))
    return {epoch: mean_interval([v[epoch] for v in by_seed]) for epoch in sorted(shared)}


def _curves(
    arms: Sequence[ArmSummary],
    series: dict[tuple[str, int], Series],
    label: str,
    limits: tuple[float | None, float | None] | None,
) -> Figure | None:
    figure, axis = _figure()
    drawn = False
    for arm, (colour, style) in zip(arms, palette(len(arms)), strict=True):
        by_seed = [series.get((arm["name"], run["seed"]), {}) for run in arm.finished]
        by_seed = [values for values in by_seed if values]
        points = band(by_seed) if by_seed else {}
        if not points:
            continue
        drawn = True
        epochs = list(points)
        means = [points[epoch].mean for epoch in epochs]
        marker = "o" if len(epochs) < 3 else None
        axis.plot(epochs, means, style, color=colour, lw=1.8, marker=marker, label=arm["name"])
        spread = [points[epoch].half_width or 0.0 for epoch in epochs]
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axis.fill_between(epochs, low, high, color=colour, alpha=0.12, lw=0)
    whole_epochs(axis)
    axis.set_ylabel(label)
    if limits:
        possible_values(axis, limits)
    return figure if drawn else None


def _tradeoff(arms: Sequence[ArmSummary], score: Score) -> Figure | None:
    figure, axis = _figure()
    drawn = False
    for arm, (colour, _) in zip(arms, palette(len(arms)), strict=True):
        points = [
            (100 * run["update"]["unchanged_bf16"], score.scale * run["score"]["final"])
            for run in arm.finished
            if None not in (run["update"]["unchanged_bf16"], run["score"]["final"])
        ]
        if points:
            drawn = True
            axis.plot(*zip(*points, strict=True), "o", color=colour, ms=5, label=arm["name"])
    axis.set_xlabel("unchanged [%]")
    axis.set_ylabel(f"final {score.label}")
    return figure if drawn else None


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axis = figure.add_subplot()
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _png(figure: Figure) -> bytes:
    """At one size, with the legend below; the title stands on the page."""
    (axis,) = figure.axes
    handles, labels = axis.get_legend_handles_labels()
    if (legend := axis.get_legend()) is not None:
        legend.remove()
    if labels:
        columns = min(_LEGEND_COLUMNS, len(labels))
        place = {"loc": "outside lower center", "fontsize": 9.5, "frameon": False}
        figure.legend(handles, labels, ncols=columns, **place)
        figure.set_size_inches(WIDTH, HEIGHT + 0.22 * ((len(labels) - 1) // _LEGEND_COLUMNS))
    else:
        figure.set_size_inches(WIDTH, HEIGHT)
    axis.set_xlabel(axis.get_xlabel().partition(" (")[0])
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
