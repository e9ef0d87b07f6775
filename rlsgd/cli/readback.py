"""The optimizer as it runs: said at the start, logged, and kept in `provenance.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlsgd.callbacks.base import run_folder
from rlsgd.optimizers.arguments import read_back
from rlsgd.resume.changes import check_changes, settings_of
from rlsgd.study.as_run import listed
from rlsgd.study.provenance import add_to_provenance


def check_resumed(
    trainer: Any, path: Path, checkpoint: dict[str, Any], given: dict[str, Any]
) -> None:
    """Refuse what cannot change when a run goes on, and say what does.

    Args:
        trainer: of the run.
        path: of the checkpoint.
        checkpoint: what it holds.
        given: the settings now, as plain data.

    Raises:
        ValueError: names the flag and both values.
    """
    before = settings_of(path)
    if before is not None:
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        for line in check_changes(str(path), before, given, done):
            say(trainer, line)


class OptimizerArguments(Callback):
    """Reads the optimizer's groups when everything that writes to them is made."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = [part for one in trainer.optimizers for part in read_back(one)]
        names = ["policy", "critic"] if len(found) == 2 else ["policy"] * len(found)
        logged: dict[str, Any] = {}
        for name, part in zip(names, found, strict=True):
            part["of"] = name
            prefix = "optimizer" if name == "policy" else f"{name}_optimizer"
            logged[f"{prefix}/class"] = part["class"]
            for number, group in enumerate(part["arguments"]):
                tail = f"/{number}" if number else ""
                # where a schedule starts from: the rate of this moment says when the run went on
                group = group | {"lr": group.get("initial_lr", group["lr"])}
                logged |= {f"{prefix}/{key}{tail}": value for key, value in group.items()}
            groups = "; ".join(listed(group) for group in part["arguments"])
            said = "" if name == "policy" else f"{name}: "
            say(trainer, f"{said}{part['class']} runs with {groups}")
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        folder = run_folder(trainer)  # on every rank: it is a broadcast
        if trainer.is_global_zero:
            add_to_provenance(folder, optimizers=found)
            for logger in trainer.loggers:
                logger.log_hyperparams(logged)


def say(trainer: Any, line: str) -> None:
    """One line of the command, from one process."""
    if trainer.is_global_zero:
        print(f"rlsgd: {line}", flush=True)
