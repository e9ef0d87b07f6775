"""`--ckpt_path last`: which run that is, and its newest checkpoint that can be read."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from rlsgd.resume.callback import FOLDER
from rlsgd.resume.files import checkpoints_in, read_checkpoint

SAME = ("model", "data", "seed_everything")  # what makes two runs the same
DATED = r"\d{8}-\d{6}"  # a folder that the command named, not its user


def is_requeued() -> bool:
    """Whether SLURM runs this job again, after a preemption or because Lightning asked it to."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def last_checkpoint(settings: Any, *, given: dict[str, Any], go_on: bool) -> Path | None:
    """The newest readable checkpoint of the run that the loggers' settings name.

    A folder of the user's choice (`version` of the loggers, `--trainer.default_root_dir` without
    loggers) is taken as it is. Otherwise it is the newest run of the same model, data and seed.

    Args:
        settings: of the subcommand. With `go_on` its loggers are set to write to that run's folder.
        given: the same as plain data, as `config.yaml` of a run has it.
        go_on: whether the run is continued, not evaluated. It may then start from the beginning,
            where it was stopped before its first checkpoint: there the answer is None.

    Raises:
        ValueError: there is none, none that can be read, or it is of another run.
    """
    loggers = _loggers(settings.trainer)
    own = Path(settings.trainer.default_root_dir or ".")
    folders = [own]
    where = f"{own} has no checkpoint"
    if loggers:
        runs = Path(loggers[0].save_dir) / str(loggers[0].name)
        own = runs / str(loggers[0].version)
        folders, where = [own], f"{own} has no checkpoint"
        if re.fullmatch(DATED, str(loggers[0].version)) and not (own / FOLDER).is_dir():
            folders = _same_runs(runs, given)
            where = f"no run of this model, data and seed under {runs} has a checkpoint"
    damaged = None
    for folder in folders:
        for path in checkpoints_in(folder / FOLDER):
            try:
                read_checkpoint(path)
            except ValueError as error:
                print(f"rlsgd: warning: passed over: {error}", file=sys.stderr)
                damaged = error
                continue
            if go_on and folder != own:
                for logger in loggers:
                    logger.version = folder.name
            return path
    if damaged is not None:
        raise damaged
    before = _config(own)
    if not go_on or (before is not None and not _is_same(before, given)):
        raise ValueError(
            f"--ckpt_path last: {where}. Start without --ckpt_path, with --config "
            "configs/trainer/checkpoint.yaml or --trainer.enable_checkpointing true"
        )
    print(f"rlsgd: {where}: starting from the beginning", file=sys.stderr)
    return None


def _loggers(trainer: Any) -> list[Any]:
    given = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    settings = [getattr(logger, "init_args", None) for logger in given]
    return [s for s in settings if s is not None and hasattr(s, "version")]


def _same_runs(runs: Path, given: dict[str, Any]) -> list[Path]:
    """Folders whose config is of the same run, that of the newest checkpoint first."""
    dated = []
    for folder in runs.glob("*"):
        checkpoints = checkpoints_in(folder / FOLDER)
        if checkpoints and _is_same(_config(folder), given):
            dated.append((checkpoints[0].stat().st_mtime_ns, folder))
    return [folder for _, folder in sorted(dated, reverse=True)]


def _config(folder: Path) -> Any:
    """What the run in this folder was started with; None if that is not there."""
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None


def _is_same(config: Any, given: dict[str, Any]) -> bool:
    return isinstance(config, dict) and all(config.get(key) == given.get(key) for key in SAME)
