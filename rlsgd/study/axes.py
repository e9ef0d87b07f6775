"""Axes that a reader can read: whole epochs, limits that a score can reach, plain numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# what an axis shows, for metrics that a study may draw its curves against
MEASURES = {
    "update/displacement": "distance from the starting weights, ||w - w0||",
    "update/relative_displacement": "distance from the starting weights, ||w - w0|| / ||w0||",
    "tokens": "tokens trained on",
}


def measure_label(metric: str) -> str:
    """A metric in words; one that has none here by its name."""
    return MEASURES.get(metric, metric)


def whole_epochs(axis: Axes) -> None:
    """Ticks at whole epochs: there is nothing at 1.975."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def possible_values(axis: Axes, limits: tuple[float | None, float | None]) -> None:
    """Cut the y-axis at what the values can be: an interval of a mean may lead beyond.

    Args:
        axis: with everything drawn.
        limits: lowest and highest possible value; None where there is none.
    """
    (low, high), (lowest, highest) = axis.get_ylim(), limits
    axis.set_ylim(
        low if lowest is None else max(low, lowest), high if highest is None else min(high, highest)
    )


def log_scale(axis: Axes) -> None:
    """A logarithmic x-axis with numbers in plain digits, at 1, 2 and 5 where it is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    few = high < 300 * low
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
