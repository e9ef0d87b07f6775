"""What an optimizer really runs with: read from its groups, and tried before a run begins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlsgd.optimizers.container import OptimizerContainer

# what cannot train here, and why
REFUSED = {
    "LBFGS": "it evaluates the loss several times for one step, and a rollout's loss is given once",
    "SparseAdam": "it takes sparse gradients alone, and those of a language model are dense",
}
# what schedulers write into the groups, and rates, which they are there to change
_OF_SCHEDULERS = ("lr", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")


def arguments(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What each group of parameters is stepped with, as plain data; equal groups once."""
    found: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        plain = {key: _plain(value) for key, value in group.items() if key != "params"}
        if plain not in found:
            found.append(plain)
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
        name: _plain(parameter.default)
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in _OF_SCHEDULERS
    }
    return {key: group[key] for key in own if key in group and group[key] != own[key]}


def class_path(kind: type) -> str:
    """Import path of a class, the short one that torch documents for its own."""
    if kind.__module__.startswith("torch.optim.") and hasattr(torch.optim, kind.__name__):
        return f"torch.optim.{kind.__name__}"
    return f"{kind.__module__}.{kind.__name__}"


def try_out(factories: Sequence[tuple[str, Callable[..., Any]]], scheduler: Any) -> list[str]:
    """Make the optimizers and their scheduler for a tiny model, to find out what they would do.

    Args:
        factories: flag and factory of each optimizer, as `PolicyModule` gets it.
        scheduler: factory of the scheduler, or None.

    Returns:
        Lines that say what the scheduler changes besides the rate.

    Raises:
        ValueError: names the flag of what cannot run: an optimizer of the table `REFUSED`, one that
            does not take its arguments, or a scheduler that gives plain SGD a momentum.
    """
    made = []
    for flag, factory in factories:
        kind = next((a for a in getattr(factory, "args", ()) if isinstance(a, type)), None)
        name = kind.__name__ if kind is not None else "the optimizer"
        if kind is not None and kind.__module__.startswith("torch.") and name in REFUSED:
            raise ValueError(f"{flag} {name}: {REFUSED[name]}; choose another")
        weights = [nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2, 2), (2,))]
        weights[1].rlsgd_roles = frozenset({"head"})  # pyright: ignore[reportAttributeAccessIssue]
        try:
            made.append(factory(iter(weights)))
        except (TypeError, ValueError) as error:
            if str(error).startswith("--"):
                raise
            raise ValueError(f"{flag} {name}: {error}") from error
    if scheduler is None:
        return []
    before = [dict(group) for one in made for group in one.param_groups]
    try:
        scheduler(made[0] if len(made) == 1 else OptimizerContainer(made))
    except (TypeError, ValueError, AssertionError):
        return []  # its arguments may fit the real groups alone: it will be made for them
    kind = next((a for a in getattr(scheduler, "args", ()) if isinstance(a, type)), None)
    name = kind.__name__ if kind is not None else "the scheduler"
    after = [group for one in made for group in one.param_groups]
    lines = []
    for asked, found in zip(before, after, strict=True):
        for key, value in asked.items():
            if key == "params" or key in _OF_SCHEDULERS or _plain(found[key]) == _plain(value):
                continue
            if key == "momentum" and not value:
                raise ValueError(
                    f"--model.lr_scheduler {name}: it would cycle momentum into an optimizer that "
                    "has none; set --model.lr_scheduler.init_args.cycle_momentum false, or write "
                    "the momentum with --model.optimizer.init_args.momentum"
                )
            lines.append(f"{name} sets {key}: {_plain(value)} becomes {_plain(found[key])}")
    return list(dict.fromkeys(lines))


def set_training(optimizer: Optimizer, training: bool) -> None:
    """Put the weights where they are trained, or where they are evaluated and saved.

    Only schedule-free optimizers keep these apart (arXiv:2405.15682): they train at an
    interpolation y, and the average x is the result.
    """
    own = getattr(optimizer, "optimizer", optimizer)  # inside Lightning's wrapper
    for part in own.optimizers if isinstance(own, OptimizerContainer) else [own]:
        if switch := getattr(part, "train" if training else "eval", None):
            switch()


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
