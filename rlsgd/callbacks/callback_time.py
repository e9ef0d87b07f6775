"""What each callback costs: seconds of every epoch, taken by Lightning's own profiler interface."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler, Profiler

from rlsgd.callbacks.base import log_metrics
from rlsgd.core.made_with import remembers_arguments

PREFIX = "[Callback]"


@remembers_arguments
class CallbackTime(Callback):
    """Seconds of each epoch as `time/epoch`, of each callback in it as `time/callback/<class>`.

    Wall time of the first rank, from an epoch's start to the next one's, whatever the order of the
    callbacks; a checkpoint that opens an epoch is in that epoch, and what precedes the first epoch
    in none. Callbacks of one class are added up. A profiler chosen by `--trainer.profiler` stays:
    it times callbacks itself, and nothing is logged here.
    """

    def __init__(self) -> None:
        self.profiler = CallbackProfiler()
        self.epoch: int | None = None
        self.began = 0.0

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and type(trainer.profiler) is PassThroughProfiler:
            trainer.profiler = self.profiler

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.log_seconds(trainer)
        self.epoch, self.began = trainer.current_epoch, time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.log_seconds(trainer)
        self.epoch = None

    def log_seconds(self, trainer: Trainer) -> None:
        """Log what was spent since the last time, if that was the start of an epoch."""
        spent = self.profiler.take()
        if spent and self.epoch is not None:
            metrics = {f"time/callback/{name}": seconds for name, seconds in spent.items()}
            metrics["time/epoch"] = time.perf_counter() - self.began
            log_metrics(trainer, metrics, epoch=self.epoch)


class CallbackProfiler(Profiler):
    """Adds up the seconds of the trainer's `[Callback]` actions by class, and ignores others."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.started: dict[str, float] = {}

    def start(self, action_name: str) -> None:
        if action_name.startswith(PREFIX):
            self.started[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if (started := self.started.pop(action_name, None)) is not None:
            self.seconds[class_of(action_name)] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Seconds by class since the last `take`."""
        spent, self.seconds = dict(self.seconds), defaultdict(float)
        return spent


def class_of(action_name: str) -> str:
    """Of `[Callback]Memory.on_fit_start` or `[Callback]Rank{'model': 'value'}.setup` the class."""
    state_key = action_name.removeprefix(PREFIX).rpartition(".")[0]
    return state_key.partition("{")[0].rpartition(".")[2]
