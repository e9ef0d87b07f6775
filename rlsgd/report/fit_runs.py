"""A single run of `rlsgd fit`, as an entry like those of a study."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rlsgd.study.arms import Arm, Study
from rlsgd.study.as_run import optimizers_of
from rlsgd.study.expansion import COMPUTE, PRECISIONS, WEIGHTS, Run
from rlsgd.study.processes import Outcome
from rlsgd.study.provenance import FILE as PROVENANCE
from rlsgd.study.results import read_metrics, run_record
from rlsgd.study.scores import SCORES

_NAMES = re.compile(r"[A-Za-z0-9._-]+")  # what an arm's name may hold


def fit_record(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `results.json` would say of a run: its `study` part, and the run's own entry.

    Args:
        folder: The run's, with metrics.csv.
        config: Its config.yaml.

    Raises:
        ValueError: The configuration names no optimizer with a learning rate.
    """
    model = (config.get("model") or {}).get("init_args") or {}
    optimizer = model.get("optimizer") or {}
    rate = (optimizer.get("init_args") or {}).get("lr")
    if not isinstance(rate, int | float) or not isinstance(optimizer.get("class_path"), str):
        raise ValueError(f"RUN {folder}: its config.yaml names no optimizer with a learning rate")
    columns = {column for row in read_metrics(folder / "metrics.csv") for column in row}
    measured = (name for name, score in SCORES.items() if score.column in columns)
    score: Any = next(measured, "accuracy")
    kind = optimizer["class_path"].rpartition(".")[2]
    found = optimizers_of(folder)
    other = [f"{key}{value}" for key, value in found[0]["changed"].items()] if found else []
    other = [text for text in other if _NAMES.fullmatch(text)]
    try:
        arm = Arm(
            name="-".join([kind.lower(), f"lr{rate:g}", *other]),
            optimizer=optimizer["class_path"],
            learning_rate=float(rate),
            precision=_precision(config, model),
        )
    except ValueError as error:
        raise ValueError(f"RUN {folder}: {error}") from error
    seed = config.get("seed_everything")
    study = Study(
        name=folder.name,
        config="",
        arms=[arm],
        seeds=[seed if isinstance(seed, int) else 0],
        score=score,
    )
    run = Run(
        arm=arm,
        sweep=None,
        seed=study.seeds[0],
        folder=folder,
        after=None,
        config=folder / "config.yaml",
        overlay={},
        fingerprint="",
        max_epochs=(config.get("trainer") or {}).get("max_epochs"),
    )
    record = run_record(study, run, _outcome(folder))
    if record["status"] == "finished" and _stopped_early(record, config.get("trainer") or {}):
        record["status"] = "stopped early"
    return _study(folder, study), record


def _precision(config: dict[str, Any], model: dict[str, Any]) -> Any:
    """The name that a study has for what the config sets, or what it sets."""
    compute = str((config.get("trainer") or {}).get("precision", "32-true"))
    settings = {COMPUTE: compute, WEIGHTS: model.get("weight_rounding")}
    named = (name for name, values in PRECISIONS.items() if values == settings)
    return next(named, " ".join(value for value in settings.values() if value))


def _outcome(folder: Path) -> Outcome:
    """As the study that started the run saw it end; a run of its own has left no such file."""
    path = folder / "run.json"
    if not path.is_file():
        return Outcome(status="finished", exit_status=0, seconds=0.0, fingerprint="")
    try:
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"RUN {folder}: run.json cannot be read: {error}") from error


def _stopped_early(record: dict[str, Any], trainer: dict[str, Any]) -> bool:
    epochs, steps = trainer.get("max_epochs") or -1, trainer.get("max_steps") or -1
    if record["epochs"] == 0:
        return True
    if 0 < steps <= (record["optimizer_steps"] or 0):
        return False
    return epochs > 0 and record["epochs"] < epochs


def _study(folder: Path, study: Study) -> dict[str, Any]:
    path = folder / PROVENANCE
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        recorded = {key: known.get(key) for key in ("command", "versions", "machine", "date")}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"RUN {folder}: {PROVENANCE} cannot be read: {error}") from error
    return {
        "name": study.name,
        "question": "",
        "learning_rates_chosen_by": "",
        "score": study.score,
        "seeds": study.seeds,
        "matched": None,
        **recorded,
    }
