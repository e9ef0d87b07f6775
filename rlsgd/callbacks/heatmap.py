"""A heatmap of one number for each parameter, layers down and kinds across, for TensorBoard."""

from __future__ import annotations

import math
from collections import defaultdict

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from rlsgd.callbacks.base import kind_of, layer_of


def layer_kind_table(values: dict[str, float]) -> tuple[list[str], list[str], list[list[float]]]:
    """Mean value for each (layer, kind); parameters outside the layers form a last row.

    Returns:
        row labels, column labels, and the table with NaN where there is no such parameter.
    """
    cells: dict[tuple[int, str], list[float]] = defaultdict(list)
    outside = 1 + max((layer_of(name) or 0 for name in values), default=0)
    for name, value in values.items():
        layer = layer_of(name)
        cells[outside if layer is None else layer, kind_of(name)].append(value)
    rows = sorted({row for row, _ in cells})
    kinds = sorted({kind for _, kind in cells})
    table = [
        [sum(c) / len(c) if (c := cells.get((row, kind))) else math.nan for kind in kinds]
        for row in rows
    ]
    labels = ["outside" if row == outside else str(row) for row in rows]
    return labels, kinds, table


def log_heatmap(
    trainer: Trainer, tag: str, values: dict[str, float], limits: tuple[float, float]
) -> None:
    """Draw the table and send it to every TensorBoard logger."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if not loggers:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, kinds, table = layer_kind_table(values)
    figure = Figure(figsize=(1.5 + 0.9 * len(kinds), 1.5 + 0.3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(table, aspect="auto", cmap="viridis", vmin=limits[0], vmax=limits[1])
    axes.set_xticks(range(len(kinds)), kinds, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylabel("layer")
    axes.set_title(tag)
    figure.colorbar(image)
    for logger in loggers:
        logger.experiment.add_figure(tag, figure, global_step=trainer.global_step, close=False)
