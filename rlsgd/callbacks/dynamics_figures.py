"""What the loggers show of the optimizer dynamics: histograms, and the rows of the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from torch import Tensor

from rlsgd.callbacks.loggers import log_figure, log_heatmap, log_histogram
from rlsgd.callbacks.optimizer_state import Dynamics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(
    trainer: Trainer, tag: str, by_name: dict[str, Dynamics], rows: tuple[Tensor, Tensor] | None
) -> None:
    """Histograms of sqrt(v) and effective rates, a heatmap of weight to gradient, and the rows."""
    for name, spread in sum(by_name.values(), Dynamics()).distributions.items():
        edges, counts = spread.histogram()  # of log10 of the values; zeros are left out
        if counts:
            log_histogram(trainer, f"{tag}/{name}_log10", edges, counts)
    key = "log10_weight_to_gradient"
    summaries = {name: part.summary(()) for name, part in by_name.items()}
    ratios = {name: values[key] for name, values in summaries.items() if key in values}
    if ratios:
        limits = min(ratios.values()), max(ratios.values())
        log_heatmap(trainer, f"{tag}/{key}_by_layer", ratios, limits)
    if rows is not None and bool((rows[1] > 0).any()):
        log_figure(trainer, f"{tag}/head_rows", lambda: scatter(f"{tag}/head_rows", *rows))


def scatter(title: str, frequency: Tensor, norms: Tensor) -> Figure:
    """Gradient norm [V] against trained occurrences [V], a point for each token."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(frequency.tolist(), norms.tolist(), s=4, alpha=0.4, linewidths=0)
    axes.set_xscale("symlog", linthresh=1)  # most tokens do not occur
    axes.set_yscale("log")
    axes.set_xlabel("occurrences among the trained tokens of this step")
    axes.set_ylabel("gradient norm of the token's row in the head")
    axes.set_title(title)
    return figure
