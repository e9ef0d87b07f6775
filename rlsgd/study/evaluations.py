"""What `rlsgd test` measures of the policies that a study has trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rlsgd.core.composition import composed
from rlsgd.study.arms import Evaluation, Study
from rlsgd.study.expansion import Run, apply_overrides, loggers, merge
from rlsgd.study.processes import Outcome
from rlsgd.study.summary import ArmSummary
from rlsgd.study.tables import shown, table

EXPORT = "HFExport"
OTHER_METRICS = ("reward", "mean_length", "truncated_fraction")  # no shares of problems


def evaluation_runs(study: Study, run: Run) -> list[Run]:
    """One run of `rlsgd test` for each of the study's evaluations, of the policy of a run.

    Raises:
        ValueError: The run does not export its policy, or overrides conflict.
    """
    if study.evaluations:
        _require_export(run)
    return [_evaluation_run(run, evaluation) for evaluation in study.evaluations]


def evaluation_record(tests: Sequence[Run], outcomes: Mapping[Path, Outcome]) -> dict[str, Any]:
    """The metrics of each evaluation of one run, by its name; None where it did not finish."""
    return {
        _name(test): _metrics(test.folder) if _finished(test, outcomes) else None for test in tests
    }


def evaluations_section(arms: Sequence[ArmSummary]) -> list[str]:
    """Markdown of every evaluation: its shares of problems, in percent."""
    parts = []
    for name in dict.fromkeys(n for arm in arms for n in arm.runs[0].get("evaluations") or ()):
        by_arm = {arm["name"]: arm.evaluation(name) for arm in arms}
        metrics = dict.fromkeys(metric for found in by_arm.values() for metric in found)
        shares = [metric for metric in metrics if metric not in OTHER_METRICS]
        rows = [
            [arm, *(shown(found.get(metric), 100, 1) for metric in shares)]
            for arm, found in by_arm.items()
        ]
        header = ["arm", *(f"{metric} [%]" for metric in shares)]
        parts += [f"## Evaluation {name}", table(header, rows)]
    return parts


def _name(test: Run) -> str:
    return test.folder.name.removeprefix(f"seed-{test.seed}-")


def _finished(test: Run, outcomes: Mapping[Path, Outcome]) -> bool:
    return test.folder in outcomes and outcomes[test.folder].status == "finished"


def _metrics(folder: Path) -> dict[str, float]:
    record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return {name: metric["value"] for name, metric in record["metrics"].items()}


def _evaluation_run(run: Run, evaluation: Evaluation) -> Run:
    folder = run.folder.with_name(f"{run.folder.name}-{evaluation.name}")
    overlay = deepcopy(run.overlay)
    apply_overrides(overlay, evaluation.overrides, f"overrides of evaluation {evaluation.name!r}")
    # The folders are left out, so that a study moved elsewhere keeps what is finished.
    identity = f"{run.fingerprint}\0{yaml.safe_dump(evaluation.overrides)}"
    placed = {
        "model.init_args.policy": str(run.folder / "hf"),
        "trainer.default_root_dir": str(folder),
        "trainer.logger": loggers(folder),
    }
    for key, value in placed.items():
        merge(overlay, key.split("."), value, key)
    return replace(
        run,
        arm=replace(run.arm, name=f"{run.arm.name}-{evaluation.name}"),
        folder=folder,
        after=None,
        overlay=overlay,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        max_epochs=None,
    )


def _require_export(run: Run) -> None:
    base = composed(run.config)
    callbacks: Any = None
    for mapping in (base, run.overlay):
        callbacks = (mapping.get("trainer") or {}).get("callbacks", callbacks)
    paths = [callback.get("class_path", "") for callback in callbacks or []]
    if not any(path.rpartition(".")[2] == EXPORT for path in paths):
        raise ValueError(
            f"evaluations: {run.config} does not keep the trained policy; add the callback {EXPORT}"
            " to its trainer.callbacks"
        )
