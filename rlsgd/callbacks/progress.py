"""One progress bar over iterations: epochs are short, so Lightning's bar for each would flicker."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlsgd.core.made_with import remembers_arguments

SHOWN = {
    "reward": "reward",
    "loss": "loss",
    "val/accuracy": "val accuracy",
    "val/loss": "val loss",
    "completions/mean_length": "length",
    "grad_norm": "grad norm",
}


@remembers_arguments
class IterationProgress(ProgressBar):
    """Epochs done, time left, and the numbers one watches.

    Where the output is not a terminal, a line is printed at every tenth of the run instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(stderr=True)
        self.progress: Progress | None = None
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.enabled and self.console.is_terminal:
            self.progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
            )
            self.progress.add_task(
                type(pl_module).__name__,
                total=planned_epochs(trainer),
                completed=trainer.current_epoch,
                numbers="",
            )
            self.progress.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        numbers = "  ".join(
            f"{label} {float(trainer.callback_metrics[key]):.4g}"
            for key, label in SHOWN.items()
            if key in trainer.callback_metrics
        )
        done = trainer.current_epoch + 1
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=done, numbers=numbers)
        elif self.enabled and trainer.is_global_zero:
            planned = planned_epochs(trainer)
            if planned is None or done % max(1, planned // 10) == 0 or done == planned:
                of = "" if planned is None else f"/{planned}"
                # soft_wrap: rich would break the line at 80 columns where there is no terminal
                self.console.print(f"epoch {done}{of}  {numbers}", highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Give the terminal back."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        self.console.print(*args, **kwargs)


def planned_epochs(trainer: Trainer) -> int | None:
    """`--trainer.max_epochs`, or None where something else ends training."""
    epochs = trainer.max_epochs
    return epochs if epochs is not None and epochs > 0 else None
