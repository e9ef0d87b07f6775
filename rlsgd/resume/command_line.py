"""`--ckpt_path last`: which run that is, and its newest checkpoint that can be read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from rlsgd.core.run_folder import order_of
from rlsgd.resume.callback import FOLDER
from rlsgd.resume.changes import other_run
from rlsgd.resume.files import checkpoints_in, read_checkpoint


def is_requeued() -> bool:
    """Whether SLURM runs this job again, after a preemption or because Lightning asked it to."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def last_checkpoint(
    named: Path | None, root: Path, *, given: dict[str, Any], go_on: bool
) -> Path | None:
    """The newest readable checkpoint of the run that is meant.

    Args:
        named: the folder that the user named, taken as it is; None means the run in `root` that
            was started or continued last, of those that differ in nothing that cannot change.
        root: where rlsgd puts the folders that it names.
        given: the present settings as plain data, as `config.yaml` of a run has them.
        go_on: whether the run is continued, not evaluated. It may then start from the beginning,
            where it was stopped before its first checkpoint: there the answer is None.

    Raises:
        ValueError: there is none, none that can be read, or it is of another run; names settings
            in which the nearest run differs.
    """
    folders, where = [], f"no run of this model, data and seed under {root} has a checkpoint"
    if named is not None:
        folders, where = [named], f"{named} has no checkpoint"
    else:
        folders = _same_runs(root, given)
    damaged = None
    for folder in folders:
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
    others = _other_runs(root.glob("*") if named is None else [named], given)
    if go_on and (not others or (named is None and is_requeued())):
        print(f"rlsgd: {where}: starting from the beginning", file=sys.stderr)
        return None
    raise ValueError(
        f"--ckpt_path last: {where}{others}. Start anew without --ckpt_path, with --config "
        "trainer/checkpoint or --trainer.enable_checkpointing true"
    )


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
    return not other_run(config, given)


def _other_runs(folders: Iterable[Path], given: dict[str, Any]) -> str:
    """What the run that is nearest has else, in words; empty where one is the same, or none is."""
    configs = [(folder, config) for folder in folders if (config := _config(folder)) is not None]
    found = [(other_run(config, given), folder) for folder, config in configs]
    if not found:
        return ""
    differs, folder = min(found, key=lambda one: (len(one[0]), -order_of(one[1]), one[1].name))
    if not differs:
        return ""
    more = f" and {len(differs) - 3} more" if len(differs) > 3 else ""
    shown = ", ".join(differs[:3])
    return f"; the nearest, {folder}, differs in {shown}{more}: to go on with it, leave that"
