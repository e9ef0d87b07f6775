"""What `rlsgd report` is given: folders of studies and of single runs, read into one form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rlsgd.report.fit_runs import fit_record
from rlsgd.study.expansion import run_folder
from rlsgd.study.results import Rows, read_metrics

_STUDY_KEYS = {"name", "command", "question", "learning_rates_chosen_by", "score", "versions"}
_RUN_KEYS = {"name", "sweep", "optimizer", "learning_rate", "seed", "precision", "status", "epochs"}
_RUN_KEYS |= {"optimizer_steps", "reward", "score", "update", "memory", "error"}


@dataclass(frozen=True, eq=False)
class ReportedRun:
    """A run: its entry as in `results.json`, and its folder, which may hold nothing any more.

    Args:
        record: The entry; its `name` is the arm's.
        folder: Where the run wrote.
    """

    record: dict[str, Any]
    folder: Path

    @cached_property
    def metrics(self) -> Rows:
        """The rows of its metrics.csv; none where the file is gone."""
        return read_metrics(self.folder / "metrics.csv")

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """Its whole configuration, or None where the file is gone."""
        return read_config(self.folder)

    @cached_property
    def problems(self) -> str:
        """What decides which prompts it saw besides the seed."""
        if self.config is None:  # a study's runs share them, and nothing is known of others
            return str(self.folder.parent.parent.resolve())
        policy = ((self.config.get("model") or {}).get("init_args") or {}).get("policy")
        return json.dumps([policy, self.config.get("data")], sort_keys=True, default=str)


@dataclass(frozen=True, eq=False)
class Source:
    """One RUN of the command line.

    Args:
        title: The study's name, or the run's folder.
        study: What `results.json` says under `study`.
        runs: The study's runs, or the one.
        is_study: False for a single run.
    """

    title: str
    study: dict[str, Any]
    runs: list[ReportedRun]
    is_study: bool


def load_sources(names: Sequence[str]) -> list[Source]:
    """Read every RUN; arms keep their names where one study is all there is.

    Raises:
        ValueError: A RUN is no folder of a finished study or run, is given twice, or is decided by
            another score than the first.
    """
    folders = [Path(name) for name in names]
    resolved = [folder.resolve() for folder in folders]
    for number, name in enumerate(names):
        if resolved[number] in resolved[:number]:
            raise ValueError(f"RUN {name} is given twice")
    sources = [_load(folder) for folder in folders]
    for source, name in zip(sources, names, strict=True):
        score, first = source.study["score"], sources[0].study["score"]
        if score != first:
            raise ValueError(
                f"RUN {name} is decided by {score} and {names[0]} by {first}: report them apart"
            )
    return _with_distinct_arms(sources)


def read_config(folder: Path) -> dict[str, Any] | None:
    """The `config.yaml` that Lightning left in a run's folder; None where there is none.

    Raises:
        ValueError: The file holds no mapping.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"RUN {folder}: config.yaml cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"RUN {folder}: config.yaml must hold a mapping")
    return config


def _load(folder: Path) -> Source:
    if not folder.is_dir():
        raise ValueError(f"RUN {folder} is no folder")
    if (folder / "results.json").is_file():
        return _load_study(folder)
    config = read_config(folder)
    if config is None or not (folder / "metrics.csv").is_file():
        raise ValueError(
            f"RUN {folder} holds neither results.json (a study that ended) nor config.yaml and"
            " metrics.csv (a run of rlsgd fit with the CSVLogger)"
        )
    study, record = fit_record(folder, config)
    return Source(folder.name, study, [ReportedRun(record, folder)], is_study=False)


def _load_study(folder: Path) -> Source:
    path = folder / "results.json"
    advice = "run the study again: finished runs are kept"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        study, entries = results["study"], results["arms"]
        missing = _STUDY_KEYS.difference(study).union(*(_RUN_KEYS.difference(e) for e in entries))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"RUN {folder}: {path} is not what rlsgd study writes ({error!r}); {advice}"
        ) from error
    if missing:
        raise ValueError(f"RUN {folder}: {path} has no {', '.join(sorted(missing))}; {advice}")
    runs = [ReportedRun(run, run_folder(folder, run["name"], run["seed"])) for run in entries]
    return Source(study["name"], study, runs, is_study=True)


def _with_distinct_arms(sources: list[Source]) -> list[Source]:
    """Name arms so that no two mean different things.

    Several studies: `STUDY/ARM`. Single runs: those whose configurations differ in the seed alone
    are one arm; where others share its name, the folder is added.
    """
    studies = [source for source in sources if source.is_study]
    titles = [source.title for source in studies]
    families: dict[str, str] = {}
    named = []
    for source in sources:
        runs = source.runs
        if source.is_study and len(sources) > 1:
            number = studies.index(source)
            repeated = titles[:number].count(source.title)
            prefix = source.title + (f" ({repeated + 1})" if repeated else "")
            runs = [_renamed(run, f"{prefix}/") for run in runs]
        elif not source.is_study:
            (run,) = runs
            family, name = _family(run), run.record["name"]
            if families.setdefault(name, family) != family:
                name = f"{name} ({source.title})"
                families[name] = family
            runs = [replace(run, record=run.record | {"name": name})]
        named.append(replace(source, runs=runs))
    return named


def _renamed(run: ReportedRun, prefix: str) -> ReportedRun:
    record, sweep = run.record, run.record["sweep"]
    names = {"name": prefix + record["name"], "sweep": None if sweep is None else prefix + sweep}
    return replace(run, record=record | names)


def _family(run: ReportedRun) -> str:
    """The configuration without the seed and the places where the run wrote."""
    config = dict(run.config or {})
    config.pop("seed_everything", None)
    kept = {"default_root_dir", "logger"}
    config["trainer"] = {k: v for k, v in (config.get("trainer") or {}).items() if k not in kept}
    return json.dumps(config, sort_keys=True, default=str)
