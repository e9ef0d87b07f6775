"""Read what the runs wrote into the study's record, `results.json`."""

from __future__ import annotations

import csv
import math
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import rlsgd
from rlsgd.study.arms import Study
from rlsgd.study.as_run import optimizers_of
from rlsgd.study.expansion import Run
from rlsgd.study.processes import Outcome
from rlsgd.study.scores import SCORES

Rows = list[dict[str, float]]
Series = dict[int, float]  # by epochs trained: 0 is the base model, 1 after the first epoch

REWARD = "reward"
UPDATE = (
    "unchanged_fp32",
    "unchanged_bf16",
    "within_1e-5",
    "bf16_difference_isclose_1e-5",
    "effective_rank",
    "effective_rank_percent",
)
MEMORY = (
    "parameter_bytes",
    "gradient_bytes",
    "optimizer_state_bytes",
    "peak_rss_bytes",
    "peak_device_bytes",
)
_LOG_TAIL_LINES = 12


def read_metrics(path: Path) -> Rows:
    """The rows of a Lightning metrics.csv with their finite numbers; none where it is missing.

    Every row gets a `step` and an `epoch`: where a logger wrote none, those of the row before.
    """
    if not path.is_file():
        return []
    rows: Rows = []
    place = {"step": 0.0, "epoch": 0.0}
    with path.open(newline="", encoding="utf-8") as file:
        for cells in csv.DictReader(file):
            numbers = {key: _float(cell) for key, cell in cells.items()}
            numbers = {key: number for key, number in numbers.items() if math.isfinite(number)}
            place = {key: numbers.get(key, value) for key, value in place.items()}
            rows.append(numbers | place)
    return rows


def epoch_series(rows: Rows, column: str) -> Series:
    """A column by epochs trained: the last value of each epoch, and at 0 the first of step 0.

    Only validation knows the base model, so only `val/` columns have a 0. Where the first epoch has
    one step, Lightning gives the validation after it step 0 again.
    """
    series: Series = {}
    for row in rows:
        if column in row:
            is_base = column.startswith("val/") and row["step"] == 0 and 0 not in series
            series[0 if is_base else int(row["epoch"]) + 1] = row[column]
    return series


def run_record(study: Study, run: Run, outcome: Outcome) -> dict[str, Any]:
    """One run's entry of `results.json`; what a run did not log is None."""
    score_column = SCORES[study.score].column
    rows = read_metrics(run.folder / "metrics.csv")
    reward = epoch_series(rows, REWARD)
    score = epoch_series(rows, score_column)
    epochs = max([*reward, *epoch_series(rows, "loss")], default=0)
    return {
        "name": run.arm.name,
        "sweep": run.sweep,
        "optimizer": run.arm.optimizer,
        "optimizer_args": run.arm.optimizer_args,
        "optimizers": optimizers_of(run.folder),
        "learning_rate": run.arm.learning_rate,
        "seed": run.seed,
        "precision": run.arm.precision,
        "status": outcome.status,
        "epochs": epochs,
        "optimizer_steps": _optimizer_steps(rows, score_column, epochs),
        "reward": {"first": _first(reward), "last": _final(reward)},
        "score": {"base": score.get(0), "final": _final(score)},
        "update": {key: _last(rows, f"update/{key}") for key in UPDATE},
        "value_update": {key: _last(rows, f"value_update/{key}") for key in UPDATE},
        "memory": {key: _bytes(rows, f"memory/{key}") for key in MEMORY},
        "measures": {column: _last(rows, column) for column in study.measures},
        "clipped_in_all_steps": _means(rows, "clipped_fraction"),
        "seconds": outcome.seconds,
        "error": None if outcome.status != "failed" else _error(run.folder, outcome.exit_status),
    }


def study_record(study: Study, command: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole of `results.json`: the study and, under `arms`, one entry for each run."""
    return {
        "study": {
            "name": study.name,
            "command": command,
            "question": study.question,
            "learning_rates_chosen_by": study.learning_rates_chosen_by,
            "score": study.score,
            "versions": versions(),
            "precision": sorted({arm.precision for arm in study.arms}),
            "machine": machine(),
            "seeds": study.seeds,
            "matched": None,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "arms": list(runs),
    }


def _float(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except (TypeError, ValueError):
        return math.nan


def _values(rows: Rows, column: str) -> list[float]:
    return [row[column] for row in rows if column in row]


def _means(rows: Rows, ending: str) -> dict[str, float]:
    """Mean over all epochs of every column whose name ends like this."""
    columns = sorted({column for row in rows for column in row if column.endswith(ending)})
    return {column: fmean(_values(rows, column)) for column in columns}


def _last(rows: Rows, column: str) -> float | None:
    return next(reversed(_values(rows, column)), None)


def _bytes(rows: Rows, column: str) -> int | None:
    """The largest value: optimizer state appears with the first step, peaks only grow."""
    return max((int(value) for value in _values(rows, column)), default=None)


def _first(series: Series) -> float | None:
    return series[min(series)] if series else None


def _final(series: Series) -> float | None:
    """The value after the last epoch that has one; the base model's does not count."""
    last = max(series, default=0)
    return series[last] if last > 0 else None


def _optimizer_steps(rows: Rows, score_column: str, epochs: int) -> int | None:
    """Steps done after the last epoch: unlike training's rows, these two kinds count them all."""
    counting = [row for row in rows if score_column in row or "update/unchanged_fp32" in row]
    steps = [int(row["step"]) for row in counting if int(row["epoch"]) + 1 == epochs]
    return max(steps, default=None)


def _error(folder: Path, exit_status: int) -> str:
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"exit status {exit_status}", *lines[-_LOG_TAIL_LINES:]])


def versions() -> dict[str, str | None]:
    """Of what a run computes with, by package; None where one is not installed."""
    packages = {name: _version(name) for name in ("torch", "lightning", "transformers")}
    return {"rlsgd": rlsgd.__version__, **packages, "python": platform.python_version()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Platform, processor, cores and bytes of memory of this machine."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _processor() -> str | None:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None
