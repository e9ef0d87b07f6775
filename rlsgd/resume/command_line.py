"""`--ckpt_path last`: which run that is, and its newest checkpoint that can be read."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from rlsgd.core.run_folder import order_of
from rlsgd.resume.callback import FOLDER
from rlsgd.resume.files import checkpoints_in, read_checkpoint

SAME = ("model", "data", "seed_everything")  # what makes two runs the same


def is_requeued() -> bool:
    """Whether SLURM runs this job again, after a preemption or because Lightning asked it to."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def last_checkpoint(
    named: Path | None, root: Path, *, given: dict[str, Any], go_on: bool
) -> Path | None:
    """The newest readable checkpoint of the run that is meant.

    Args:
        named: the folder that the user named, taken as it is; None means the run in `root` of the
            same model, data and seed that was started or continued last.
        root: where rlsgd puts the folders that it names.
        given: the present settings as plain data, as `config.yaml` of a run has them.
        go_on: whether the run is continued, not evaluated. It may then start from the beginning,
            where it was stopped before its first checkpoint: there the answer is None.

    Raises:
        ValueError: there is none, none that can be read, or it is of another run.
    """
    folders, where = [], f"no run of this model, data and seed under {root} has a checkpoint"
    if named is not None:
        folders, where = [named], f"{named} has no checkpoint"
    damaged = None
    for folder in folders or _same_runs(root, given):
        for path in checkpoints_in(folder / FOLDER):
            try:
                read_checkpoint(path)
            except ValueError as error:
                print(f"rlsgd: warning: passed over: {error}", file=sys.stderr)
                damaged = error
                continue
            return path
    if damaged is not None:
        raise damaged
    before = None if named is None else _config(named)
    if not go_on or (before is not None and not _is_same(before, given)):
        raise ValueError(
            f"--ckpt_path last: {where}. Start without --ckpt_path, with --config "
            "configs/trainer/checkpoint.yaml or --trainer.enable_checkpointing true"
        )
    print(f"rlsgd: {where}: starting from the beginning", file=sys.stderr)
    return None


def is_local(checkpoint: str) -> bool:
    """Whether `--ckpt_path` is a file or folder, not an address or one of Lightning's words."""
    return "://" not in checkpoint and checkpoint not in ("best", "hpc")


def is_inside(path: str, folder: Path) -> bool:
    """Whether a checkpoint is one of the run in this folder."""
    return is_local(path) and folder.resolve() in Path(path).resolve().parents


def _same_runs(runs: Path, given: dict[str, Any]) -> list[Path]:
    """Folders whose config is of the same run, the one that was started last first."""
    found = [
        folder
        for folder in runs.glob("*")
        if checkpoints_in(folder / FOLDER) and _is_same(_config(folder), given)
    ]
    return sorted(found, key=lambda folder: (order_of(folder), folder.name), reverse=True)


def _config(folder: Path) -> Any:
    """What the run in this folder was started with; None if that is not there."""
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None


def _is_same(config: Any, given: dict[str, Any]) -> bool:
    return isinstance(config, dict) and all(config.get(key) == given.get(key) for key in SAME)
