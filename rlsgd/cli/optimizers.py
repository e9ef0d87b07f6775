"""Optimizers and schedulers are tried on nothing before the base is validated."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import Trainer

from rlsgd.algorithms import PolicyModule
from rlsgd.core.command import one_line
from rlsgd.optimizers.protocol import ChecksTrainer

SHAPES = ((2, 2), (2, 2), (2,))  # some optimizers take matrices alone


def check_optimizers(trainer: Trainer, model: PolicyModule) -> None:
    """Refuse what an optimizer or scheduler class says of its arguments, or of vectors.

    Raises:
        ValueError: names the flag and the class.
    """
    for name in ("optimizer", "value_optimizer"):
        factory: Any = getattr(model, name, None)
        if factory is None:
            continue
        for part in getattr(factory, "args", ()):  # LightningCLI's is a partial of the class
            if isinstance(part, ChecksTrainer):
                part.check_trainer(trainer)
        weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
        weights[1].rlsgd_roles = frozenset({"head"})  # pyright: ignore[reportAttributeAccessIssue]
        optimizer = _tried(f"--model.{name}", factory, weights)
        if name == "optimizer" and model.lr_scheduler is not None:
            scheduler = _tried("--model.lr_scheduler", model.lr_scheduler, optimizer)
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                raise ValueError(
                    "--model.lr_scheduler ReduceLROnPlateau: waits for a metric, and the rate is "
                    "stepped by epochs alone; use another, such as "
                    "torch.optim.lr_scheduler.ExponentialLR"
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # no optimizer has stepped
                _tried("--model.lr_scheduler", model.lr_scheduler, optimizer, steps=True)


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
        named = next((p.__name__ for p in getattr(factory, "args", ()) if isinstance(p, type)), "")
        vectors = "2D" in message or "matri" in message
        fix = (
            "; rlsgd.optimizers.MuonWithAdamW gives the other weights to AdamW"
            if vectors
            else "; change that argument"
        )
        raise ValueError(f"{flag} {named}: {message}{fix}") from error
