"""What the two callbacks on weight updates share: when they measure, against what, and where to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rlsgd.core.checkpoints import LazyTensors, starting_weights
from rlsgd.core.distributed import full_parameters, gathered, process_number
from rlsgd.core.made_with import remembers_arguments
from rlsgd.core.matrices import holds_experts, split_experts

T = TypeVar("T")


def log_metrics(trainer: Trainer, metrics: dict[str, float], *, epoch: int | None = None) -> None:
    """Log exact Python numbers; `LightningModule.log` would round byte counts to float32.

    Args:
        trainer: whose loggers get them.
        metrics: by name.
        epoch: that they belong to; the present one if none is given.
    """
    epoch = trainer.current_epoch if epoch is None else epoch
    exact_metrics(trainer).update(metrics)
    for logger in trainer.loggers:
        logger.log_metrics({**metrics, "epoch": epoch}, step=trainer.global_step)
        logger.save()


def exact_metrics(trainer: Trainer) -> dict[str, float]:
    """The last value of every number of `log_metrics`, with and without loggers."""
    return vars(trainer).setdefault("exact_metrics", {})


def append_jsonl(trainer: Trainer, filename: str, *records: dict[str, Any]) -> None:
    """Append a line for each record to a file in the run's folder, on the first rank.

    Every rank must call it, see `run_folder`.
    """
    folder = run_folder(trainer)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / filename).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


def run_folder(trainer: Trainer) -> Path:
    """The run's folder: as the command line claimed it, else the logger's, else the default root.

    Every rank must call it: the first rank's answer is sent to the others.
    """
    claimed = getattr(trainer, "run_folder", None)
    if claimed is not None:
        return Path(trainer.strategy.broadcast(str(claimed)))
    return Path(trainer.log_dir or trainer.default_root_dir)


@remembers_arguments
class EveryNEpochs(Callback):
    """Measures after every n-th epoch and after the last of `--trainer.max_epochs`.

    Args:
        every_n_epochs: cadence; measuring takes time, and epochs are short.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError("every_n_epochs must be at least 1")
        self.every_n_epochs = every_n_epochs

    def is_due(self, trainer: Trainer) -> bool:
        epochs = trainer.current_epoch + 1
        return epochs % self.every_n_epochs == 0 or epochs == trainer.max_epochs


class ModelCallback(EveryNEpochs):
    """Looks at one of the module's models.

    Args:
        every_n_epochs: cadence; the last epoch is always measured.
        model: the module's attribute that is measured. The policy's metrics and files have their
            plain names, those of another model its name in front: `value_update/...`.
    """

    def __init__(self, every_n_epochs: int = 1, model: str = "policy") -> None:
        super().__init__(every_n_epochs)
        self.model = model
        self.prefix = "" if model == "policy" else f"{model}_"

    @property
    def state_key(self) -> str:
        return self._generate_state_key(model=self.model)

    def measured(self, pl_module: LightningModule) -> nn.Module:
        """The model this callback looks at."""
        model = getattr(pl_module, self.model, None)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"--trainer.callbacks: {type(self).__name__} has model {self.model!r}, but "
                f"{type(pl_module).__name__} trains none of that name; set it to policy or remove "
                "the callback"
            )
        return model


class UpdateCallback(ModelCallback):
    """Compares each parameter with its starting value, read from disk one tensor at a time.

    Checkpoints remember the folder of the starting weights, because a resumed run may have another.

    Args:
        every_n_epochs: cadence; the last epoch is always measured.
        model: the module's attribute that is measured, see `ModelCallback`.
    """

    initial: LazyTensors
    snapshot: Path | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"starting_weights": str(self.snapshot.absolute()) if self.snapshot else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = state_dict["starting_weights"]
        self.snapshot = Path(folder) if folder else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        resumed = trainer.ckpt_path is not None
        own = run_folder(trainer) / f"{self.prefix}starting_weights"
        if not (resumed and self.snapshot and self.snapshot.is_dir()):
            self.snapshot = own
        self.initial = starting_weights(
            lambda: full_parameters(self.measured(pl_module)),
            None if module.random_weights else module.starting_folder,
            self.snapshot,
            resumed=resumed,
        )

    def tensors(
        self, pl_module: LightningModule, before: LazyTensors
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, weight now, weight before), each in float32 on the weight's device.

        The weight before is first rounded to the present dtype, as it was when it was loaded:
        storage in bfloat16 alone is no update.
        """
        for name, weight in full_parameters(self.measured(pl_module)):
            yield name, weight.float(), _earlier(before, name, weight)

    def of_each(
        self,
        pl_module: LightningModule,
        before: LazyTensors,
        measure: Callable[[Tensor, Tensor], T],
        *,
        matrices: bool = False,
    ) -> dict[str, T]:
        """`measure(weight now, weight before)` of every parameter, by name, on every rank.

        Every rank holds each parameter when its turn comes, and reads and measures every n-th.

        Args:
            pl_module: the module that is trained.
            before: earlier weights.
            measure: gets both weights as `tensors` gives them; its result must pickle.
            matrices: leave out what is no matrix; experts that share a tensor are matrices each,
                as a checkpoint of this model has them.
        """
        process, processes = process_number()
        model = self.measured(pl_module)
        chosen = (
            (name, weight)
            for name, weight in full_parameters(model)
            if not matrices or weight.ndim == 2 or holds_experts(name, weight)
        )
        own = []
        for index, (name, weight) in enumerate(chosen):
            if index % processes != process:
                continue
            pair = weight.float(), _earlier(before, name, weight)
            now, then = ([(name, x)] if not matrices else as_stored(model, name, x) for x in pair)
            for (part, a), (_, b) in zip(now, then, strict=True):
                own.append((index, part, measure(a, b)))
        return {name: value for _, name, value in sorted(gathered(own), key=lambda item: item[0])}


def as_stored(model: nn.Module, name: str, weight: Tensor) -> list[tuple[str, Tensor]]:
    """The matrices that a parameter is in a checkpoint, where gate and up of an expert are two."""
    if isinstance(model, PreTrainedModel):
        stored = revert_weight_conversion(model, {name: weight})
        if sum(part.numel() for part in stored.values()) == weight.numel():
            return [part for item in stored.items() for part in split_experts(*item)]
    return split_experts(name, weight)


def _earlier(before: LazyTensors, name: str, weight: Tensor) -> Tensor:
    return before[name].to(weight.device, weight.dtype).float()
