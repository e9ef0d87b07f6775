"""TensorBoard's share of the optimizer dynamics: histograms, and the rows of the head."""

from __future__ import annotations

from itertools import pairwise

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from rlsgd.callbacks.heatmap import log_heatmap
from rlsgd.callbacks.optimizer_state import Dynamics
from rlsgd.functional.dynamics import Distribution


def draw(
    trainer: Trainer, tag: str, by_name: dict[str, Dynamics], rows: tuple[Tensor, Tensor] | None
) -> None:
    """Histograms of sqrt(v) and effective rates, a heatmap of weight to gradient, and the rows."""
    for name, spread in sum(by_name.values(), Dynamics()).distributions.items():
        log_histogram(trainer, f"{tag}/{name}_log10", spread)
    key = "log10_weight_to_gradient"
    summaries = {name: part.summary(()) for name, part in by_name.items()}
    ratios = {name: values[key] for name, values in summaries.items() if key in values}
    if ratios:
        limits = min(ratios.values()), max(ratios.values())
        log_heatmap(trainer, f"{tag}/{key}_by_layer", ratios, limits)
    if rows is not None:
        log_scatter(trainer, f"{tag}/head_rows", *rows)


def log_histogram(trainer: Trainer, tag: str, spread: Distribution) -> None:
    """Send the histogram of log10 of the values to every TensorBoard logger; zeros are left out."""
    edges, counts = spread.histogram()
    if not counts:
        return
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    weighted = list(zip(middles, counts, strict=True))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram_raw(
                tag,
                min=edges[0],
                max=edges[-1],
                num=sum(counts),
                sum=sum(m * c for m, c in weighted),
                sum_squares=sum(m * m * c for m, c in weighted),
                bucket_limits=edges[1:],
                bucket_counts=counts,
                global_step=trainer.global_step,
            )


def log_scatter(trainer: Trainer, tag: str, frequency: Tensor, norms: Tensor) -> None:
    """Draw gradient norm [V] against trained occurrences [V], a point for each token."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if not loggers or not bool((norms > 0).any()):
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.scatter(frequency.tolist(), norms.tolist(), s=4, alpha=0.4, linewidths=0)
    axes.set_xscale("symlog", linthresh=1)  # most tokens do not occur
    axes.set_yscale("log")
    axes.set_xlabel("occurrences among the trained tokens of this step")
    axes.set_ylabel("gradient norm of the token's row in the head")
    axes.set_title(tag)
    for logger in loggers:
        logger.experiment.add_figure(tag, figure, global_step=trainer.global_step, close=False)
