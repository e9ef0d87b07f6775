"""The README.md of an exported model: what it was trained from, how, and what came of it."""

from __future__ import annotations

import platform
from importlib.metadata import version
from numbers import Number
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

PACKAGES = ("rlsgd", "torch", "transformers", "lightning")
_CARD = """\
---
{front}---

# {title}

{policy} after {epochs} epochs ({steps} optimizer steps) of {algorithm} with
rlsgd. Not checked for anything but the figures below.

## Optimizer

{optimizer}

## Figures at the end

{figures}

## Versions

{versions}
{recipe}"""


def model_card(trainer: Trainer, module: Any, folder: Path) -> str:
    """The card of a policy when training has ended.

    Args:
        trainer: whose `callback_metrics` are the figures.
        module: whose `starting_folder` is what training started from.
        folder: the run's; its `config.yaml`, where there is one, is the recipe.
    """
    path = str(module.starting_folder)
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["rlsgd"]}
    if not Path(path).exists() and path.count("/") == 1:  # a hub name, which the hub links
        front["base_model"] = path
    figures = {
        name: f"{float(value):.6g}"
        for name, value in sorted(trainer.callback_metrics.items())
        if value.numel() == 1
    }
    found = {name: version(name) for name in PACKAGES}
    config = folder / "config.yaml"
    recipe = ""
    if config.is_file():
        text = config.read_text(encoding="utf-8").replace(str(Path.home()), "~")
        recipe = f"\n## Recipe\n\n```yaml\n{text.strip()}\n```\n"
    return _CARD.format(
        front=yaml.safe_dump(front),
        title=f"{Path(path).name} trained by rlsgd",
        policy=f"`{Path(path).name if Path(path).is_absolute() else path}`",
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        algorithm=type(module).__name__,
        optimizer="\n\n".join(map(_optimizer, trainer.optimizers)),
        figures=_table({"metric": "value", **figures}) if figures else "None was logged.",
        versions=_table({"package": "version", **found, "python": platform.python_version()}),
        recipe=recipe,
    )


def _optimizer(optimizer: Any) -> str:
    """Class, and the numbers of its first group; the rate is the one that it began with."""
    group = optimizer.param_groups[0]
    numbers = {k: v for k, v in group.items() if isinstance(v, Number | tuple) and v is not None}
    numbers |= {"lr": numbers.pop("initial_lr")} if "initial_lr" in numbers else {}
    rows = {name: f"{value}" for name, value in numbers.items()}
    return _table({"optimizer": type(optimizer).__name__, **rows})


def _table(rows: dict[str, str]) -> str:
    (head, second), *rest = rows.items()
    lines = [f"| {head} | {second} |", "|---|---|", *(f"| {name} | {v} |" for name, v in rest)]
    return "\n".join(lines)
