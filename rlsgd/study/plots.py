"""The figures of a study as PNG files. matplotlib is imported only when they are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rlsgd.study.axes import log_scale, measure_label, possible_values, whole_epochs
from rlsgd.study.results import REWARD, Rows, Series, epoch_series
from rlsgd.study.scores import Score
from rlsgd.study.summary import ArmSummary, summarise, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
# Okabe and Ito's palette: told apart with every common form of colour blindness.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", "--", ":", "-.")
_COLUMNS = 2  # of panels, so that a page's width holds them
CURVES: dict[str, tuple[str, str, str, float]] = {
    "reward": ("Mean reward of each epoch's rollout", REWARD, "reward", 1),
    "unchanged_bf16": (
        "Weights unchanged since the start (bf16 view, tolerance 0)",
        "update/unchanged_bf16",
        "unchanged [%]",
        100,
    ),
    "effective_rank_percent": (
        "Effective rank of the update (99% energy)",
        "update/effective_rank_percent",
        "mean over matrices [% of full rank]",
        1,
    ),
}
_MEMORY = {
    "parameters": "parameter_bytes",
    "gradients": "gradient_bytes",
    "optimizer state": "optimizer_state_bytes",
}


def draw_plots(
    runs: Sequence[dict[str, Any]],
    metrics: Sequence[Rows],
    folder: Path,
    score: Score,
    match: str | None = None,
) -> list[tuple[str, str]]:
    """Draw every figure the runs have numbers for.

    Args:
        runs: The entries of `results.json`.
        metrics: The metrics.csv rows of each.
        folder: Of the report; figures go to its `plots`.
        score: What decides the study.
        match: A growing metric to draw the score and the unchanged share against.

    Returns:
        Title and path relative to `folder` of each figure.
    """
    arms = summarise(runs)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    drawn = []
    outcome = (f"Validation: {score.title}", score.column, score.label, score.scale)
    curves = {"reward": CURVES["reward"], score.name: outcome, **CURVES}
    for name, (title, column, label, scale) in curves.items():
        series = {
            (run["name"], run["seed"]): {
                epoch: scale * value for epoch, value in epoch_series(rows, column).items()
            }
            for run, rows in zip(runs, metrics, strict=True)
        }
        if any(series.values()):
            figure = curves_figure(arms, series, title, label)
            figure.savefig(folder / "plots" / f"{name}.png", dpi=DPI)
            drawn.append((title, f"plots/{name}.png"))
    others = [
        (
            f"Final {score.title} by learning rate",
            "learning_rates",
            learning_rate_figure(arms, score),
        ),
        ("Memory of weights, gradients and optimizer state", "memory", memory_figure(arms)),
    ]
    if match:
        figure = _against(runs, metrics, arms, match, (outcome, CURVES["unchanged_bf16"]))
        others.append((f"The same against the {measure_label(match)}", "matched", figure))
    for title, name, figure in others:
        if figure is not None:
            figure.suptitle(title)
            figure.savefig(folder / "plots" / f"{name}.png", dpi=DPI)
            drawn.append((title, f"plots/{name}.png"))
    return drawn


def curves_figure(
    arms: Sequence[ArmSummary],
    series: dict[tuple[str, int], Series],
    title: str,
    label: str,
) -> Figure:
    """One panel for each swept arm and one for all others; thin lines are seeds, bold the mean."""
    panels = list(sweeps(arms).items())
    fixed = [arm for arm in arms if arm["sweep"] is None]
    panels = ([("arms" if panels else "", fixed)] if fixed else []) + panels
    figure, axes = _figure(len(panels))
    figure.suptitle(title)
    for axis, (name, members) in zip(axes, panels, strict=True):
        for arm, (colour, style) in zip(members, _styles(members), strict=True):
            by_seed = [series[arm["name"], run["seed"]] for run in arm.runs]
            by_seed = [values for values in by_seed if values]
            if not by_seed:
                continue
            mean = _mean(by_seed)
            if len(by_seed) > 1:
                for values in by_seed:
                    axis.plot(*_points(values), color=colour, linestyle=style, lw=0.7, alpha=0.45)
            text = f"{arm['learning_rate']:g}" if arm["sweep"] else arm["name"]
            marker = "o" if len(mean) < 3 else None
            axis.plot(
                *_points(mean), color=colour, linestyle=style, lw=2.2, marker=marker, label=text
            )
        axis.set_title(name, fontsize="medium")
        whole_epochs(axis)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(
                title="learning rate" if members[0]["sweep"] else None,
                loc="upper left",
                bbox_to_anchor=(1.0, 1.0),
                fontsize="small",
                frameon=False,
            )
    for axis in axes[::_COLUMNS]:
        axis.set_ylabel(label)
    return figure


def _figure(panels: int, *, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns, rows = min(panels, _COLUMNS), math.ceil(panels / _COLUMNS)
    size = (1.5 + (6.0 if panels == 1 else 5.0) * columns, 4.4 if rows == 1 else 3.4 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for empty in axes[panels:]:
        empty.set_axis_off()
    axes = axes[:panels]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _styles(members: Sequence[ArmSummary]) -> list[tuple[Any, str]]:
    """Colours by order of rate within a sweep, else one of the palette for each arm."""
    if members[0]["sweep"] is not None:
        from matplotlib import colormaps

        span = max(1, len(members) - 1)
        return [(colormaps["viridis"](0.9 * i / span), "-") for i in range(len(members))]
    return palette(len(members))


def palette(arms: int) -> list[tuple[str, str]]:
    """A colour and a line style for each of a number of arms."""
    number = len(_PALETTE)
    return [
        (_PALETTE[i % number], _LINE_STYLES[i // number % len(_LINE_STYLES)]) for i in range(arms)
    ]


def _mean(by_seed: Sequence[Series]) -> Series:
    """Mean over seeds where every seed has a value: it ends where the first of them diverges."""
    shared = set.intersection(*(set(values) for values in by_seed))
    return {epoch: fmean(values[epoch] for values in by_seed) for epoch in sorted(shared)}


def _points(values: Series) -> tuple[list[int], list[float]]:
    epochs = sorted(values)
    return epochs, [values[epoch] for epoch in epochs]


def _against(
    runs: Sequence[dict[str, Any]],
    metrics: Sequence[Rows],
    arms: Sequence[ArmSummary],
    match: str,
    curves: Sequence[tuple[str, str, str, float]],
) -> Figure | None:
    """Curves of every run against a growing metric; None if none measured it."""
    paths = [epoch_series(rows, match) for rows in metrics]
    if not any(paths):
        return None
    figure, axes = _figure(2, sharey=False)
    number = len(_PALETTE)
    colours = {arm["name"]: _PALETTE[i % number] for i, arm in enumerate(arms)}
    for axis, (_, column, label, scale) in zip(axes, curves, strict=True):
        named = set()
        for run, rows, path in zip(runs, metrics, paths, strict=True):
            curve = epoch_series(rows, column)
            epochs = sorted(path.keys() & curve.keys())
            axis.plot(
                [path[epoch] for epoch in epochs],
                [scale * curve[epoch] for epoch in epochs],
                color=colours[run["name"]],
                marker=".",
                lw=1.0,
                label=None if run["name"] in named else run["name"],
            )
            named.add(run["name"])
        log_scale(axis)
        axis.set_xlabel(measure_label(match))
        axis.set_ylabel(label)
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small", frameon=False)
    return figure


def learning_rate_figure(arms: Sequence[ArmSummary], score: Score) -> Figure | None:
    """Final score against learning rate, with intervals; None without a sweep."""
    lines = list(sweeps(arms).items())
    if all(arm.mean("score", "final") is None for _, rates in lines for arm in rates):
        return None
    figure, (axis,) = _figure(1)
    for (name, rates), colour in zip(lines, _PALETTE * len(lines), strict=False):
        found = [
            (arm["learning_rate"], arm.estimate("score", "final"))
            for arm in rates
            if len(arm.finished) == len(arm.runs)
        ]
        points = [(rate, value) for rate, value in found if value is not None]
        lost = [arm["learning_rate"] for arm in rates if len(arm.finished) < len(arm.runs)]
        # On the axis, outside the scale: the survivors' mean would flatter such a rate.
        edge = axis.get_xaxis_transform()
        axis.plot(lost, [0.03] * len(lost), "x", color=colour, transform=edge)
        axis.errorbar(
            [rate for rate, _ in points],
            [score.scale * value.mean for _, value in points],
            yerr=[score.scale * (value.half_width or 0.0) for _, value in points],
            color=colour,
            marker="o",
            capsize=3,
            label=name,
        )
    log_scale(axis)
    possible_values(axis, score.limits)
    axis.set_xlabel("learning rate (bars: 95% interval over seeds; x: a seed diverged or failed)")
    axis.set_ylabel(f"final {score.label}")
    axis.legend(frameon=False)
    return figure


def memory_figure(arms: Sequence[ArmSummary]) -> Figure | None:
    """Stacked bars, one for each arm; None where no arm measured its memory."""
    measured = [arm for arm in arms if arm.mean("memory", "parameter_bytes") is not None]
    if not measured:
        return None
    figure, (axis,) = _figure(1)
    figure.set_figheight(1.6 + 0.36 * len(measured))
    totals = [sum(arm.mean("memory", key) or 0.0 for key in _MEMORY.values()) for arm in measured]
    unit, size = ("GiB", 2**30) if max(totals) >= 2**30 else ("MiB", 2**20)
    names = [arm["name"] for arm in measured]
    left = [0.0] * len(measured)
    for (part, key), colour in zip(_MEMORY.items(), _PALETTE, strict=False):
        widths = [(arm.mean("memory", key) or 0.0) / size for arm in measured]
        axis.barh(names, widths, left=left, color=colour, label=part, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel(f"memory [{unit}]")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small", frameon=False)
    return figure
