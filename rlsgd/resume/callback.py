"""IterationCheckpoint: all that a run needs to go on exactly as if it had never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from rlsgd.callbacks.base import run_folder
from rlsgd.resume.files import checkpoints_in, publish, read_checkpoint, unfinished
from rlsgd.resume.history import SET_ASIDE, SIZES, log_sizes
from rlsgd.resume.signals import StopSignals

FOLDER = "checkpoints"
# of a run that was killed while it wrote, and later iterations than the one it went back to
LEFT = (".*.writing", f"*{SET_ASIDE}")


class IterationCheckpoint(Checkpoint):
    """Saves the run as `checkpoints/iteration=N.ckpt` in its folder when N iterations are done.

    N iterations are done when their scheduler step and metrics are, which is after the hooks for
    the end of an epoch: what is saved there resumes with the learning rate of an epoch before. On
    SIGTERM or SIGINT the iteration is finished and saved, and the command ends with 143 or 130.
    Under SLURM the signal that announces the end of the job's time (SIGUSR1) is met alike, and then
    Lightning requeues the job.

    Args:
        every_n_epochs: cadence; the last iteration is always saved.
        keep: the newest of these checkpoints that are kept. Two, so that there is another if one is
            damaged.
    """

    def __init__(self, every_n_epochs: int = 1, keep: int = 2) -> None:
        if every_n_epochs < 1 or keep < 1:
            raise ValueError(
                "--trainer.callbacks: IterationCheckpoint needs every_n_epochs and keep of at "
                f"least 1; got {every_n_epochs} and {keep}"
            )
        self.every_n_epochs = every_n_epochs
        self.keep = keep
        self.signals = StopSignals()
        self.first_epoch = 0
        self.is_saving = False
        self.is_checked = False
        self.sizes: dict[str, int] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_epoch = trainer.current_epoch
        self.signals.install(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch
        if _is_trial(trainer) or done == self.first_epoch:
            return

        def on_any_rank(decision: bool) -> bool:
            return trainer.strategy.reduce_boolean_decision(decision, all=False)

        stop = on_any_rank(self.signals.received is not None)
        if stop or done % self.every_n_epochs == 0:
            self.save(trainer, pl_module)
        if stop and on_any_rank(self.signals.wants_requeue):
            self.requeue(trainer)
        if stop:
            raise self.signals.interrupted()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _is_trial(trainer):
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint beside its place, then put it there, and drop the oldest.

        Raises:
            DivergedError: a weight is not finite; then nothing is written.
            ValueError: a callback or the data module has a state that is no plain data.
        """
        module: Any = pl_module
        if check := getattr(module, "require_finite_weights", None):
            check()
        folder = run_folder(trainer) / FOLDER
        path = folder / f"iteration={trainer.current_epoch}.ckpt"
        written = unfinished(path)
        self.sizes = log_sizes(trainer)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            for pattern in LEFT:
                for left in folder.glob(pattern):
                    _remove(left)
        trainer.strategy.barrier()
        self.is_saving = True
        try:
            trainer.save_checkpoint(written, weights_only=False)
        finally:
            self.is_saving = False
        if trainer.is_global_zero:
            publish(written, path)
            if not self.is_checked:  # a state that cannot be read back must not show at the restart
                read_checkpoint(path)
                self.is_checked = True
            own = [path for path in checkpoints_in(folder) if path.name.startswith("iteration=")]
            for old in own[self.keep :]:
                _remove(old)
        trainer.strategy.barrier()

    def requeue(self, trainer: Trainer) -> None:
        """Let Lightning requeue the SLURM job.

        The checkpoint that Lightning writes on the way holds nothing new, and goes: any later job
        that is started in the same folder would go on from it unasked.
        """
        name = trainer._checkpoint_connector.hpc_save_path(trainer.default_root_dir)
        path = Path(trainer.strategy.broadcast(name))
        self.is_saving = True
        try:
            self.signals.requeue_handler(self.signals.requeue_signal, None)
        finally:
            self.is_saving = False
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            _remove(path)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note what is logged, and that no iteration is under way.

        Lightning has counted the next iteration as ready when it calls `on_train_epoch_start`, and
        would take a run from such a checkpoint for one that stopped amid it.
        """
        if self.is_saving:
            checkpoint[SIZES] = self.sizes
            progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
            for counts in (progress["current"], progress["total"]):
                counts["ready"] = counts["started"]


def _is_trial(trainer: Any) -> bool:
    return bool(trainer.fast_dev_run)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
