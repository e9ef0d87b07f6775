"""Tables, images and histograms in every logger, in the form that it shows best.

A logger of one's own takes part by `add_table.register`, `add_image.register` and
`add_histogram.register`, with functions like those below.
"""

from __future__ import annotations

import csv
import html
import io
import sys
from collections.abc import Callable, Sequence
from functools import cache, singledispatch
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from rlsgd.core.layer_kinds import heatmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Columns = Sequence[str]
Rows = Sequence[Sequence[str | float | None]]
Edges = Sequence[float]
Counts = Sequence[int]

NUMBERS_ALONE = (CSVLogger, DummyLogger)
MARKUP = {ord(character): f"&#{ord(character)};" for character in "\\`*_{}[]()#+-.!|~\"'"}
# TensorBoard drops some control characters in silence, and small models love them.
CONTROL = dict.fromkeys((c for c in range(32) if chr(c) not in "\t\n"), "\N{REPLACEMENT CHARACTER}")


def log_table(trainer: Trainer, tag: str, columns: Columns, rows: Rows) -> None:
    """Send a table to every logger.

    Args:
        trainer: whose loggers get it.
        tag: its name.
        columns: their names.
        rows: of cells, one for each column.
    """
    for logger in _more_than_numbers(trainer):
        add_table(logger, tag, columns, rows, trainer.global_step)


def log_figure(trainer: Trainer, tag: str, draw: Callable[[], Figure]) -> None:
    """Send the pixels of a figure to every logger.

    Args:
        trainer: whose loggers get it.
        tag: its name.
        draw: makes it; not called where no logger holds more than numbers.
    """
    if loggers := _more_than_numbers(trainer):
        image = pixels(draw())
        for logger in loggers:
            add_image(logger, tag, image, trainer.global_step)


def log_heatmap(
    trainer: Trainer, tag: str, values: dict[str, float], limits: tuple[float, float]
) -> None:
    """Send a number for each parameter to every logger, drawn as layers x kinds."""
    log_figure(trainer, tag, lambda: heatmap(tag, values, limits))


def log_histogram(trainer: Trainer, tag: str, edges: Edges, counts: Counts) -> None:
    """Send a histogram to every logger.

    Args:
        trainer: whose loggers get it.
        tag: its name.
        edges: of the bins, one more than `counts`.
        counts: values in each bin.
    """
    for logger in _more_than_numbers(trainer):
        add_histogram(logger, tag, edges, counts, trainer.global_step)


@singledispatch
def add_table(logger: Any, tag: str, columns: Columns, rows: Rows, step: int) -> None:
    """Add a table to one logger."""
    _say_what_is_missing(type(logger).__name__, "table")


@singledispatch
def add_image(logger: Any, tag: str, image: np.ndarray, step: int) -> None:
    """Add an image, bytes [height, width, 3], to one logger."""
    _say_what_is_missing(type(logger).__name__, "image")


@singledispatch
def add_histogram(logger: Any, tag: str, edges: Edges, counts: Counts, step: int) -> None:
    """Add a histogram to one logger."""
    _say_what_is_missing(type(logger).__name__, "histogram")


@add_table.register
def _(logger: TensorBoardLogger, tag: str, columns: Columns, rows: Rows, step: int) -> None:
    logger.experiment.add_text(tag, markdown_table(columns, rows), step)


@add_image.register
def _(logger: TensorBoardLogger, tag: str, image: np.ndarray, step: int) -> None:
    logger.experiment.add_image(tag, image, step, dataformats="HWC")


@add_histogram.register
def _(logger: TensorBoardLogger, tag: str, edges: Edges, counts: Counts, step: int) -> None:
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    weighted = list(zip(middles, counts, strict=True))
    logger.experiment.add_histogram_raw(
        tag,
        min=edges[0],
        max=edges[-1],
        num=sum(counts),
        sum=sum(m * c for m, c in weighted),
        sum_squares=sum(m * m * c for m, c in weighted),
        bucket_limits=edges[1:],
        bucket_counts=counts,
        global_step=step,
    )


@add_table.register
def _(logger: WandbLogger, tag: str, columns: Columns, rows: Rows, step: int) -> None:
    logger.log_table(tag, columns=list(columns), data=[list(row) for row in rows], step=step)


@add_image.register
def _(logger: WandbLogger, tag: str, image: np.ndarray, step: int) -> None:
    from PIL import Image

    logger.log_image(tag, [Image.fromarray(image)], step=step)  # an array it might rescale


@add_histogram.register
def _(logger: WandbLogger, tag: str, edges: Edges, counts: Counts, step: int) -> None:
    import wandb

    histogram: Any = wandb.Histogram(np_histogram=(np.asarray(counts), np.asarray(edges)))
    logger.log_metrics({tag: histogram}, step)


@add_table.register
def _(logger: MLFlowLogger, tag: str, columns: Columns, rows: Rows, step: int) -> None:
    """A CSV file for each step, which MLflow shows as a table."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *rows])
    logger.experiment.log_text(logger.run_id, text.getvalue(), f"{tag}/step-{step:06d}.csv")


@add_image.register
def _(logger: MLFlowLogger, tag: str, image: np.ndarray, step: int) -> None:
    logger.experiment.log_image(logger.run_id, image, key=tag, step=step)


def markdown_table(columns: Columns, rows: Rows) -> str:
    """A table in Markdown; texts of a model are escaped, since TensorBoard renders markup."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(map(markdown_cell, row))} |" for row in rows]
    return "\n".join(lines)


def markdown_cell(cell: str | float | None) -> str:
    """A number to three digits; a text with markup escaped and control characters visible."""
    if cell is None:
        return ""
    if not isinstance(cell, str):
        return f"{cell:.3f}"
    plain = cell.replace("\r\n", "\n").translate(CONTROL)
    return html.escape(plain, quote=False).translate(MARKUP).replace("\n", "<br>")


def pixels(figure: Figure) -> np.ndarray:
    """The colours of a figure, bytes [height, width, 3], at its own resolution."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _more_than_numbers(trainer: Trainer) -> list[Any]:
    """The loggers that may hold more than numbers; none on ranks that do not log."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if not isinstance(logger, NUMBERS_ALONE)]


@cache  # once for each class and kind
def _say_what_is_missing(logger: str, kind: str) -> None:
    print(
        f"rlsgd: warning: {logger} is sent no {kind}s: it has no function for them; give it one "
        f"with rlsgd.callbacks.loggers.add_{kind}.register",
        file=sys.stderr,
        flush=True,
    )
