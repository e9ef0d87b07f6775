"""Heatmaps of one number for each parameter, for TensorBoard."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from rlsgd.core.layer_kinds import heatmap


def log_heatmap(
    trainer: Trainer, tag: str, values: dict[str, float], limits: tuple[float, float]
) -> None:
    """Draw layers x kinds and send it to every TensorBoard logger."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    if not loggers:
        return
    figure = heatmap(tag, values, limits)
    for logger in loggers:
        logger.experiment.add_figure(tag, figure, global_step=trainer.global_step, close=False)
