"""rlsgd's instruments in TRL's trainers, and any other on transformers' Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback

from rlsgd.callbacks import EffectiveRank, Memory, UpdateSparsity
from rlsgd.core.checkpoints import LazyTensors, starting_weights
from rlsgd.core.distributed import full_parameters
from rlsgd.functional.updates import TOLERANCES
from rlsgd.optimizers import FusedBackwardSGD


class UpdateMetrics(TrainerCallback):
    """Update sparsity, effective rank and memory, under the names that `rlsgd fit` logs.

    They go through the trainer's own log: its history, and everything in `report_to`. The update is
    measured against the weights at the start of training, read from the model's folder where it
    holds them, else from a copy in `output_dir/starting_weights`.

        trainer = GRPOTrainer(...)
        trainer.add_callback(UpdateMetrics(trainer, every_n_steps=10))

    Args:
        trainer: The one it is added to.
        every_n_steps: Cadence in optimizer steps; the last step is always measured.
        tolerances: Absolute tolerances, see `rlsgd.callbacks.UpdateSparsity`.
        effective_rank: Measure of ranks, which takes far longer than counting.
        sketch_above: Shorter side above which a matrix is sketched, see
            `rlsgd.callbacks.EffectiveRank`.
    """

    def __init__(
        self,
        trainer: Trainer,
        every_n_steps: int = 1,
        tolerances: Sequence[float] = TOLERANCES,
        effective_rank: bool = True,
        sketch_above: int | None = None,
    ) -> None:
        self.trainer = trainer
        self.sparsity = UpdateSparsity(every_n_steps, tolerances, per_step=False)
        self.rank = EffectiveRank(sketch_above=sketch_above) if effective_rank else None
        self.memory = Memory()
        self.initial: LazyTensors | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the starting weights.

        Raises:
            ValueError: The model or the optimizer is one whose update is not what it seems.
        """
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        check_model(model)
        if isinstance(getattr(optimizer, "optimizer", optimizer), FusedBackwardSGD):
            raise ValueError(
                "FusedBackwardSGD steps inside the backward pass, and this trainer calls step() "
                "after it; take torch.optim.SGD"
            )
        self.initial = starting_weights(
            lambda: full_parameters(model),
            getattr(model.config, "_name_or_path", None) or None,
            Path(args.output_dir) / "starting_weights",
            resumed=state.global_step > 0,
        )
        self.memory.on_train_start(self.trainer, model)  # pyright: ignore[reportArgumentType]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure and log, where it is time."""
        last = state.global_step >= state.max_steps or control.should_training_stop
        if state.global_step % self.sparsity.every_n_epochs == 0 or last:
            due = control.should_log  # which a log takes for done
            # not TRL's own override, which would close the averages that its next log is to hold
            Trainer.log(self.trainer, self.measure(kwargs["model"], kwargs["optimizer"]))
            control.should_log = due

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the hooks off the model."""
        self.memory.teardown(self.trainer, kwargs["model"], "fit")  # pyright: ignore[reportArgumentType]

    def measure(self, model: nn.Module, optimizer: Any) -> dict[str, float]:
        """Every metric of the update so far, and of memory."""
        assert self.initial is not None, "training has begun"
        module: Any = SimpleNamespace(policy=model, global_step=self.trainer.state.global_step)
        metrics = self.sparsity.metrics(self.sparsity.count(module, self.initial))
        if self.rank is not None:
            self.rank.initial = self.initial
            metrics |= self.rank.metrics(self.rank.ranks(module))
        return metrics | self.memory.metrics([optimizer], model)


def check_model(model: nn.Module) -> None:
    """Refuse a model whose parameters are not the weights that training changes.

    Raises:
        ValueError: It has adapters, or its weights are split in a way that torch does not know.
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            "UpdateMetrics: the model has adapters, whose update is not that of its weights; merge "
            "them after training and compare by `rlsgd analyze BASE MERGED`"
        )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id") or "_flat_param" in name:
            raise ValueError(
                "UpdateMetrics: DeepSpeed ZeRO-3 and FSDP1 keep weights where they cannot be read "
                "whole; use FSDP2 (fsdp_version: 2), or `rlsgd analyze` on the saved checkpoints"
            )
