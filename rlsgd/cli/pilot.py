"""The pilot of `rlsgd rates`: a config's first iterations, at weights that do not move."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file

from rlsgd.callbacks import IterationProgress
from rlsgd.callbacks.noise_scale import gradients, rows_of
from rlsgd.cli.readback import OptimizerArguments
from rlsgd.cli.training import TrainingCLI


class KeepGradients(Callback):
    """Writes the policy's gradients before clipping, a file for each optimizer step.

    Args:
        folder: of `0.safetensors`, `1.safetensors`, ...
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[int] = []  # of each step
        self.files: list[Path] = []
        self.epochs = 0
        self._rows = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            raise ValueError("--trainer.devices: rlsgd rates measures on one process; set it to 1")
        if trainer.precision == "16-mixed":
            raise ValueError(
                "--trainer.precision 16-mixed: gradients are scaled there; use bf16-mixed"
            )
        self._start = digest(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._rows += rows_of(batch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        policy = pl_module.policy
        assert isinstance(policy, torch.nn.Module)
        found = {n: gradient.float().cpu().contiguous() for n, gradient in gradients(policy)}
        path = self.folder / f"{len(self.files)}.safetensors"
        save_file(found, path)
        self.files.append(path)
        self.rows.append(self._rows)
        self._rows = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs += 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if digest(pl_module) != self._start:
            raise RuntimeError("the weights moved during the pilot, which is to keep them")


def digest(module: LightningModule) -> float:
    """A number that changes with any weight of the policy."""
    parameters = module.policy.parameters()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return sum(float(p.detach().double().square().sum()) for p in parameters)


class Pilot(TrainingCLI):
    """`rlsgd fit` for a few iterations, whose policy has SGD with rate 0.

    Its optimizer, as the config has it, is kept in `anchor`, its clipping in `clipping`.
    """

    folder: Path
    iterations: int
    anchor: Any
    keep: KeepGradients
    clipping: tuple[float | None, str]
    max_epochs: int

    @classmethod
    def measure(cls, argv: list[str], folder: Path, iterations: int) -> Pilot:
        """Run it: the gradients of `iterations` epochs, in `folder`."""
        pilot = cls.__new__(cls)
        pilot.folder, pilot.iterations = folder, iterations
        pilot.start(["fit", *argv])
        return pilot

    def before_instantiate_classes(self) -> None:
        settings = self.config.fit.trainer
        self.max_epochs = settings.max_epochs or 1000
        value = settings.gradient_clip_val
        self.clipping = (value, settings.gradient_clip_algorithm or "norm")
        settings.max_epochs = self.iterations
        settings.max_steps = -1
        settings.check_val_every_n_epoch = self.iterations
        settings.callbacks, settings.logger = [], False
        settings.enable_checkpointing = False
        settings.default_root_dir = str(self.folder / "run")
        super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        model: Any = self.model
        self.anchor, model.optimizer = model.optimizer, partial(torch.optim.SGD, lr=0.0)
        model.lr_scheduler = None

    def before_fit(self) -> None:
        """Check, without a validation of the base."""
        self.trainer.limit_val_batches = 0
        super().before_fit()

    def fit(self, **arguments: Any) -> None:
        """Without the headline of a run that trains."""
        self.trainer.fit(**arguments, weights_only=True)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        self.keep = KeepGradients(self.folder)
        present: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        present[:] = [one for one in present if not isinstance(one, OptimizerArguments)]
        present += [self.keep, IterationProgress()]
        return trainer
