"""What rlsgd asks of an optimizer beyond torch's interface: each part is optional.

Any `torch.optim.Optimizer` trains. One that has the members of a protocol below is treated as the
protocol says; `isinstance` finds out. `FusedBackwardSGD` has all but the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from rlsgd.core.distributed import global_norm


@runtime_checkable
class ReportsSteps(Protocol):
    """Says something of each step, which is logged after it."""

    step_metrics: dict[str, Tensor]  # [] each, of the last step


@runtime_checkable
class CountsStates(Protocol):
    """Knows the memory of its state, for the closed form."""

    def states_per_weight(self, group: dict[str, Any]) -> int:
        """Numbers kept for each weight of a parameter group."""
        ...


@runtime_checkable
class ChecksTrainer(Protocol):
    """Refuses, as a static method, the trainer's flags that it cannot honour."""

    def check_trainer(self, trainer: Trainer) -> None:
        """Raise ValueError that names the flag and the one to use instead."""
        ...


@runtime_checkable
class Attaches(Protocol):
    """Depends on how the trainer steps, or on the parameters' names."""

    def attach(self, trainer: Trainer, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Called once, before the first step."""
        ...


@runtime_checkable
class StepsInBackward(Protocol):
    """Applies and frees gradients while backward runs, so that none is left to measure or clip."""

    clipped: bool  # whether the last step clipped anything

    def measure_norm(self, closure: Callable[[], Any]) -> None:
        """A pass of its own before the step, if it has to know the norm beforehand."""
        ...

    def gradient_norm(self) -> Tensor:
        """Norm [] of all gradients of the last step together, before clipping."""
        ...


def measured_gradients(
    optimizer: torch.optim.Optimizer, clip_val: float | None, algorithm: str | None
) -> tuple[float, bool]:
    """Norm of an optimizer's gradients before clipping, and whether clipping changes them.

    By `value` it does where the largest element is above `clip_val`, else where the norm is.
    """
    if isinstance(optimizer, StepsInBackward):  # it has clipped and applied them
        return float(optimizer.gradient_norm()), optimizer.clipped
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = global_norm(gradients)
    measured = global_norm(gradients, torch.inf) if algorithm == "value" else norm
    clips = (measured > (clip_val or torch.inf)).to(norm)
    norm, clips = torch.stack([norm, clips]).tolist()  # one wait for the device
    return norm, bool(clips)
