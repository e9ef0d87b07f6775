"""Memory: bytes counted from the tensors, peaks measured by the system, and the closed form."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlsgd.callbacks.base import EveryNEpochs, log_metrics
from rlsgd.core.distributed import local_shard
from rlsgd.optimizers.protocol import CountsStates

# float32 numbers that an optimizer keeps for each weight (arXiv:2602.07729, section on memory);
# an optimizer that is not torch's may say so itself, by a method `states_per_weight`
STATES_PER_WEIGHT = {
    torch.optim.SGD: lambda group: int(group["momentum"] != 0),
    torch.optim.RMSprop: lambda group: 1 + bool(group["momentum"]) + bool(group["centered"]),
    torch.optim.Adam: lambda group: 2 + bool(group["amsgrad"]),
    torch.optim.AdamW: lambda group: 2 + bool(group["amsgrad"]),
    torch.optim.Muon: lambda group: 1,
}


class Memory(EveryNEpochs):
    """Bytes of parameters, gradients and optimizer state on this rank, and peaks, as `memory/...`.

    `gradient_bytes` is the most that the parameters' gradients took at any moment of a backward
    pass. What autograd holds inside is not in it: of a tied weight, the gradient of one use until
    the other's is there; under FSDP2, the whole gradients of a layer until they are reduced.
    `closed_form_bytes` is 4 bytes for each weight and for each number the optimizer keeps of it:
    12 bytes a weight with AdamW, 4 with SGD; it is left out for optimizers it does not know.
    `peak_rss_bytes` is the process's whole resident memory, `peak_device_bytes` CUDA's allocator's.

    Args:
        every_n_epochs: cadence; the last epoch is always measured.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs)
        self.gradient_bytes = 0
        self.with_gradient: list[Tensor] = []
        self.handles: list[RemovableHandle] = []

    def state_dict(self) -> dict[str, Any]:
        return {"gradient_bytes": self.gradient_bytes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.gradient_bytes = state_dict["gradient_bytes"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        # Called before the hooks of an optimizer that frees gradients, which come with its step.
        self.handles = [p.register_post_accumulate_grad_hook(self.count_gradients) for p in trained]

    def count_gradients(self, parameter: Tensor) -> None:
        """Count the gradients that exist at the moment that one more has been computed."""
        others = (p for p in self.with_gradient if p is not parameter)
        self.with_gradient = [p for p in (*others, parameter) if p.grad is not None]
        gradients = (p.grad for p in self.with_gradient if p.grad is not None)
        self.gradient_bytes = max(self.gradient_bytes, num_bytes(gradients))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles, self.with_gradient = [], []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer):
            return
        log_metrics(trainer, self.metrics(trainer.optimizers, pl_module))

    def metrics(self, optimizers: Sequence[Any], module: nn.Module) -> dict[str, float]:
        """What is logged of a module and its optimizers, by metric."""
        states = (
            value
            for optimizer in optimizers
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        trained = [p for p in module.parameters() if p.requires_grad]
        frozen = [p for p in module.parameters() if not p.requires_grad]
        metrics: dict[str, float] = {
            "memory/parameter_bytes": num_bytes(trained),
            "memory/frozen_bytes": num_bytes(frozen),
            "memory/gradient_bytes": self.gradient_bytes,
            "memory/optimizer_state_bytes": num_bytes(states),
            "memory/peak_rss_bytes": peak_rss_bytes(),
        }
        closed_form = [closed_form_bytes(optimizer) for optimizer in optimizers]
        if None not in closed_form:
            metrics["memory/closed_form_bytes"] = sum(b for b in closed_form if b is not None)
        if torch.cuda.is_available():
            metrics["memory/peak_device_bytes"] = torch.cuda.max_memory_allocated()
        return metrics


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the given tensors' own elements; of a sharded tensor, this rank's part."""
    return sum(t.numel() * t.element_size() for t in map(local_shard, tensors))


def closed_form_bytes(optimizer: torch.optim.Optimizer) -> int | None:
    """4 x (1 + states) bytes for each trained weight of this rank, or None for one unknown."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # of Lightning's wrapper
    if (parts := getattr(optimizer, "optimizers", None)) is not None:  # a container of several
        sizes = [closed_form_bytes(part) for part in parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    known = STATES_PER_WEIGHT.get(type(optimizer))
    states = optimizer.states_per_weight if isinstance(optimizer, CountsStates) else known
    if states is None:
        return None
    return sum(
        4
        * (1 + states(group))
        * sum(local_shard(p).numel() for p in group["params"] if p.requires_grad)
        for group in optimizer.param_groups
    )


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
