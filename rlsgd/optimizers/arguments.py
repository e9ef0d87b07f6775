"""What an optimizer really runs with, read from its groups."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlsgd.optimizers.container import OptimizerContainer

# what schedulers write into the groups, and rates, which they are there to change
OF_SCHEDULERS = ("lr", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")


def arguments(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What each group of parameters is stepped with, as plain data; equal groups once."""
    found: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        values = {key: plain(value) for key, value in group.items() if key != "params"}
        if values not in found:
            found.append(values)
    return found


def read_back(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The optimizer, or policy's and critic's inside a container, as `provenance.json` has it.

    Returns:
        `class`, `arguments` (one mapping for each distinct group) and `changed`: those that are
        not the class's own defaults, without the rate.
    """
    joined = type(optimizer) is OptimizerContainer  # a class of its own counts as one optimizer
    parts = optimizer.optimizers if joined else [optimizer]
    return [
        {
            "class": class_path(type(part)),
            "arguments": arguments(part),
            "changed": changed(type(part), arguments(part)[0]),
        }
        for part in parts
    ]


def changed(kind: type[Optimizer], group: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a group that differ from the defaults in the class's signature, without `lr`."""
    own = {
        name: plain(parameter.default)
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in OF_SCHEDULERS
    }
    return {key: group[key] for key in own if key in group and group[key] != own[key]}


def class_path(kind: type) -> str:
    """Import path of a class, the short one that torch documents for its own."""
    if kind.__module__.startswith("torch.optim.") and hasattr(torch.optim, kind.__name__):
        return f"torch.optim.{kind.__name__}"
    return f"{kind.__module__}.{kind.__name__}"


def set_training(optimizer: Optimizer, training: bool) -> None:
    """Put the weights where they are trained, or where they are evaluated and saved.

    Only schedule-free optimizers keep these apart (arXiv:2405.15682): they train at an
    interpolation y, and the average x is the result.
    """
    own = getattr(optimizer, "optimizer", optimizer)  # inside Lightning's wrapper
    for part in own.optimizers if isinstance(own, OptimizerContainer) else [own]:
        if switch := getattr(part, "train" if training else "eval", None):
            switch()


def plain(value: Any) -> Any:
    """A value of a group as JSON has it."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
