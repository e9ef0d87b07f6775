"""What the two callbacks on weight updates share: when they measure, against what, and where to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rlsgd.checkpoints import LazyTensors, starting_weights
from rlsgd.distributed import full_parameters

KINDS = {
    "embedding": r"embed|wte|wpe",
    "attention_q": r"q_proj",
    "attention_k": r"k_proj",
    "attention_v": r"v_proj",
    "attention_o": r"o_proj|attn\.c_proj",
    "attention_qkv": r"c_attn|qkv",
    "mlp": r"mlp|gate_proj|up_proj|down_proj",
    "head": r"lm_head",
}


def kind_of(name: str) -> str:
    """Kind of a parameter by its name: embedding, attention_q/k/v/o, mlp, norm, head, or other."""
    if re.search(r"norm|\bln_", name):
        return "norm"
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")


def layer_of(name: str) -> int | None:
    """Index of the decoder layer a parameter belongs to, if it belongs to one."""
    found = re.search(r"\b(?:layers|h|blocks)\.(\d+)\.", name)
    return int(found[1]) if found else None


def log_metrics(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Log exact Python numbers; `LightningModule.log` would round byte counts to float32."""
    for logger in trainer.loggers:
        logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=trainer.global_step)
        logger.save()


def append_jsonl(trainer: Trainer, filename: str, record: dict[str, Any]) -> None:
    """Append a line to a file in the run's folder, on the first rank."""
    if trainer.is_global_zero:
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / filename).open("a") as file:
            file.write(json.dumps(record) + "\n")


def run_folder(trainer: Trainer) -> Path:
    """The logger's folder, or the default root where there is no logger."""
    return Path(trainer.log_dir or trainer.default_root_dir)


class EveryNEpochs(Callback):
    """Measures after every n-th epoch and after the last one.

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


class UpdateCallback(EveryNEpochs):
    """Compares each parameter with its starting value, read from disk one tensor at a time."""

    initial: LazyTensors

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        self.initial = starting_weights(
            full_parameters(module.policy),
            None if module.random_weights else module.starting_folder,
            run_folder(trainer) / "starting_weights",
            resumed=trainer.ckpt_path is not None,
        )

    def tensors(
        self, pl_module: LightningModule, before: LazyTensors
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, weight now, weight before), each in float32 on the weight's device."""
        module: Any = pl_module
        for name, weight in full_parameters(module.policy):
            yield name, weight.float(), before[name].to(weight.device, torch.float32)
