"""The logs of a run, taken back to where its checkpoint left them: no epoch twice, none missing."""

from __future__ import annotations

import csv
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rlsgd.callbacks.base import run_folder
from rlsgd.resume.files import checkpoints_in, place_of, publish, sync, unfinished

SIZES = "log_sizes"  # what every checkpoint notes of the logs
TABLE, KEPT = "metrics.csv", "metrics.csv.kept"
RECORD = b'{"epoch": '  # how every record of the callbacks' logs begins, and nobody's data
SET_ASIDE = ".set-aside"  # at the end of the name of a checkpoint that is not of the run any more
SCRATCH = re.compile(r"scratch-[a-z0-9_]{8}")


def log_sizes(trainer: Trainer) -> dict[str, int]:
    """Bytes of each log file in the run's folder, all that was logged being in them.

    Of `metrics.csv` a copy is made instead: its logger rewrites it for every new column, and a
    crash in that moment would lose the rows. Every rank must call it, see `run_folder`.
    """
    folder = run_folder(trainer)
    if not trainer.is_global_zero:
        return {}
    for logger in trainer.loggers:
        logger.save()
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
        if isinstance(logger, CSVLogger) and (table := Path(logger.log_dir) / TABLE).exists():
            kept = table.with_name(KEPT)
            shutil.copyfile(table, unfinished(kept))
            publish(unfinished(kept), kept)
    logs = _logs(trainer, folder)
    for log in logs:  # what the checkpoint counts on must outlive a power loss as it does
        sync(log)
    return {path.name: path.stat().st_size for path in logs}


def rewind(trainer: Trainer, path: Path, checkpoint: dict[str, Any]) -> None:
    """Remove from the run's folder what was logged after the checkpoint, before `fit` goes on.

    Nothing is touched where the checkpoint is of another folder. It may be interrupted, and done
    again. Every rank must call it, the first one works.

    Args:
        trainer: with the loggers that the run had.
        path: of the checkpoint.
        checkpoint: what `read_checkpoint` gives.
    """
    folder = run_folder(trainer)
    if not trainer.is_global_zero or folder.resolve() not in path.resolve().parents:
        return
    _set_aside(path)
    if SIZES in checkpoint:
        _truncate(trainer, folder, checkpoint[SIZES])
    else:
        print(
            f"rlsgd: warning: {path} was not written by IterationCheckpoint: {folder} keeps what "
            "was logged after it, and the run may not go on exactly as it would have",
            file=sys.stderr,
        )
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            rewind_table(logger, progress["processed"])


def _set_aside(path: Path) -> None:
    """Rename later checkpoints, which `last` would take; they go when the next one is saved."""
    later = [other for other in checkpoints_in(path.parent) if place_of(other) > place_of(path)]
    for other in later if path.name.startswith("iteration=") else ():
        other.rename(other.with_name(other.name + SET_ASIDE))
        print(f"rlsgd: the run goes back to {path.name}: {other} is set aside", file=sys.stderr)


def start_over(trainer: Trainer) -> None:
    """Remove what a run logged that was stopped before its first checkpoint."""
    folder = run_folder(trainer)
    if not trainer.is_global_zero:
        return
    _truncate(trainer, folder, {})
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            for name in (TABLE, KEPT):
                (Path(logger.log_dir) / name).unlink(missing_ok=True)


def rewind_table(logger: CSVLogger, epochs: int) -> None:
    """Keep the rows of the first epochs; a logger would begin by deleting its file.

    They stay in the copy until there is another one, so that a crash here loses none.
    """
    table = Path(logger.log_dir) / TABLE
    kept = table.with_name(KEPT)
    own, copy = read_table(table), read_table(kept)
    if not (own or copy):
        return
    lines = max(own, copy, key=len)  # a crash may have left either of them short
    if (cut := _cut(table)) and lines is copy:
        print(f"rlsgd: {table}: {cut}; its rows come from {KEPT}", file=sys.stderr)
    elif cut:
        print(f"rlsgd: {table}: {cut}; left out", file=sys.stderr)
    rows, epoch = [], 0
    for row in csv.DictReader(lines):
        epoch = int(row["epoch"] or epoch)
        if epoch < epochs:
            rows.append(row)
    with unfinished(kept).open("w", newline="", encoding="utf-8") as file:
        file.writelines(lines)
    publish(unfinished(kept), kept)
    logged: list[Any] = [{name: value for name, value in row.items() if value} for row in rows]
    logger.experiment.metrics[:0] = logged
    logger.save()


def read_table(table: Path) -> list[str]:
    """The whole lines with which `metrics.csv` begins.

    A crash cuts the last line; after a power loss the end may be zeros, or anything.
    """
    data = table.read_bytes() if table.exists() else b""
    lines: list[str] = []
    for line in data.splitlines(keepends=True):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            break
        cells = next(csv.reader([text]), [])
        header = next(csv.reader(lines[:1]), cells)
        row = dict(zip(header, cells, strict=False))
        is_whole = text.endswith("\n") and "\0" not in text and len(cells) == len(header)
        is_epoch = bool(lines) and (row.get("epoch", "") or "0").isdigit()
        if not is_whole or not (is_epoch or (cells == header and "epoch" in header)):
            break
        lines.append(text)
    return lines


def _cut(table: Path) -> str:
    """What is wrong with the end of a table, in words; empty if nothing is."""
    whole = sum(len(line.encode()) for line in read_table(table))
    size = table.stat().st_size if table.exists() else 0
    return f"the last {size - whole} bytes are no whole rows" if size > whole else ""


def _truncate(trainer: Trainer, folder: Path, sizes: dict[str, int]) -> None:
    for log in _logs(trainer, folder):
        if size := sizes.get(log.name, 0):
            os.truncate(log, min(size, log.stat().st_size))
        else:  # begun after the checkpoint
            log.unlink()
    for left in folder.glob("scratch-*"):
        if _is_scratch(left):  # of a callback that was killed
            shutil.rmtree(left, ignore_errors=True)


def _logs(trainer: Trainer, folder: Path) -> list[Path]:
    """The logs of this run: without loggers its folder may be one with other files."""
    logs = [path for path in folder.glob("*.jsonl") if path.is_file() and _begins_a_log(path)]
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logs += Path(logger.log_dir).glob("events.out.tfevents.*")
    return logs


def _begins_a_log(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(RECORD)) == RECORD


def _is_scratch(folder: Path) -> bool:
    inside = [path for path in folder.rglob("*") if not path.is_dir()]
    return bool(SCRATCH.fullmatch(folder.name)) and all(p.suffix == ".safetensors" for p in inside)
