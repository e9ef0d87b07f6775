"""Optimizers and schedulers are tried on a tiny model before the base is validated."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rlsgd.algorithms import PolicyModule
from rlsgd.core.command import one_line
from rlsgd.optimizers import OptimizerContainer
from rlsgd.optimizers.arguments import OF_SCHEDULERS, plain
from rlsgd.optimizers.protocol import ChecksTrainer

SHAPES = ((2, 2), (2, 2), (2,))  # some optimizers take matrices alone
# what cannot train here, and why
REFUSED = {
    "LBFGS": "it evaluates the loss several times for one step, and a rollout's loss is given once",
    "SparseAdam": "it takes sparse gradients alone, and those of a language model are dense",
}


def check_optimizers(trainer: Trainer, model: PolicyModule) -> list[str]:
    """Refuse an optimizer, scheduler or clipping that would not do what is asked.

    Returns:
        Lines that say what the scheduler changes besides the rate.

    Raises:
        ValueError: names the flag and the class: an optimizer of the table `REFUSED`, one that does
            not take its arguments, or vectors; a scheduler that waits for a metric, or gives an
            optimizer without momentum one; clipping at 0.
    """
    clip = trainer.gradient_clip_val
    if clip is not None and not clip > 0:
        raise ValueError(
            f"--trainer.gradient_clip_val {clip}: it would clip nothing; give a number above 0, or "
            "leave it out"
        )
    made = []
    for flag in ("optimizer", "value_optimizer"):
        factory: Any = getattr(model, flag, None)
        if factory is None:
            continue
        kind = _class(factory)
        if isinstance(kind, ChecksTrainer):
            kind.check_trainer(trainer)
        name = getattr(kind, "__name__", "")
        if name in REFUSED and kind.__module__.startswith("torch."):
            raise ValueError(f"--model.{flag} {name}: {REFUSED[name]}; choose another")
        weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
        weights[1].rlsgd_roles = frozenset({"head"})  # pyright: ignore[reportAttributeAccessIssue]
        made.append(_tried(f"--model.{flag}", factory, weights))
    if model.lr_scheduler is None:
        return []
    optimizer = made[0] if len(made) == 1 else OptimizerContainer(made)
    return _changed_by(model.lr_scheduler, optimizer)


def _changed_by(factory: Any, optimizer: torch.optim.Optimizer) -> list[str]:
    """What a scheduler writes into an optimizer's groups besides the rate."""
    flag, name = "--model.lr_scheduler", getattr(_class(factory), "__name__", "the scheduler")
    groups = optimizer.param_groups
    before = [dict(group) for group in groups]
    scheduler = _tried(flag, factory, optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            f"{flag} ReduceLROnPlateau: waits for a metric, and the rate is stepped by epochs "
            "alone; use another, such as torch.optim.lr_scheduler.ExponentialLR"
        )
    lines = []
    for asked, found in zip(before, groups, strict=True):
        for key in (key for key in asked if key not in ("params", *OF_SCHEDULERS)):
            old, new = plain(asked[key]), plain(found[key])
            if old != new and key == "momentum" and not old:
                raise ValueError(
                    f"{flag} {name}: it would cycle momentum into an optimizer that has none; set "
                    "--model.lr_scheduler.cycle_momentum false, or write the momentum with "
                    "--model.optimizer.momentum"
                )
            if old != new:
                lines.append(f"{name} sets {key}: {old} becomes {new}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimizer has stepped
        _tried(flag, factory, optimizer, steps=True)
    return list(dict.fromkeys(lines))


def _class(factory: Any) -> Any:
    """Class of what a factory makes: itself, or what it is a partial of, as LightningCLI's is."""
    parts = (factory, getattr(factory, "func", None), *getattr(factory, "args", ()))
    return next((part for part in parts if isinstance(part, type)), None)


def _tried(flag: str, factory: Any, given: Any, *, steps: bool = False) -> Any:
    try:
        made = factory(given)
        if steps:
            made.step()
        return made
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        message = one_line(str(error))
        if message.startswith("--"):
            raise
        name = getattr(_class(factory), "__name__", "")
        vectors = "2D" in message or "matri" in message
        fix = (
            "; rlsgd.optimizers.MuonWithAdamW gives the other weights to AdamW"
            if vectors
            else "; change that argument"
        )
        raise ValueError(f"{flag} {name}: {message}{fix}") from error
