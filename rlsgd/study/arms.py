"""What a study is: the mapping in its YAML file, validated before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser

from rlsgd.core.recipes import find_config, find_named

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED_NAMES = {"plots"}

# Not dict[str, Any]: in that, jsonargparse turns a class_path into an object and "1" into 1. What
# is here belongs to `rlsgd fit`, and goes there as it was written.
Settings = dict

Precision = Literal["fp32", "master", "bf16", "bf16-nearest", "bf16-stochastic"]


@dataclass(kw_only=True)
class Arm:
    """One optimizer with one learning rate, or with a list of them (a sweep).

    Args:
        name: Names the arm's folder and its row in the report.
        optimizer: Import path of the optimizer class, for example `torch.optim.SGD`.
        learning_rate: A rate, or a list: the arm then becomes one arm for each, `NAME-lrRATE`.
        optimizer_args: The optimizer's other arguments.
        precision: `fp32` (fp32 weights and compute), `master` (fp32 weights, bf16 compute), `bf16`
            (all in bf16), or `bf16-nearest` and `bf16-stochastic` (fp32 compute, weights rounded to
            bf16 after each step, to the nearest or at random without bias).
        overrides: Dotted keys of the base config with this arm's values. In their texts `{seed}`
            stands for the run's seed and `{after}` for the folder of the run named by `after`.
        overlays: Further `rlsgd fit` configs, relative to the study file, that this arm is given;
            they come before its overrides.
        config: The `rlsgd fit` config this arm starts from instead of the study's.
        after: Name of an arm whose run with the same seed must have ended before.
    """

    name: str
    optimizer: str
    learning_rate: float | list[float]
    optimizer_args: Settings = field(default_factory=dict)
    precision: Precision = "fp32"
    overrides: Settings = field(default_factory=dict)
    overlays: list[str] = field(default_factory=list)
    config: str | None = None
    after: str | None = None

    def __post_init__(self) -> None:
        _require_folder_name("arms.name", self.name)
        if not self.optimizer:
            raise ValueError(f"arms.optimizer of {self.name!r} is empty: give a class path")
        rates = self.rates
        if not rates or any(not math.isfinite(rate) or rate <= 0 for rate in rates):
            raise ValueError(
                f"arms.learning_rate of {self.name!r} must be a positive number or a list of"
                f" them, not {self.learning_rate}"
            )
        if "lr" in self.optimizer_args:
            raise ValueError(
                f"arms.optimizer_args of {self.name!r} holds lr: write it as learning_rate"
            )

    @property
    def is_sweep(self) -> bool:
        """True where the learning rate is a list, even a list of one."""
        return isinstance(self.learning_rate, list)

    @property
    def rates(self) -> list[float]:
        """The learning rates, one or several."""
        return self.learning_rate if isinstance(self.learning_rate, list) else [self.learning_rate]

    def expand(self) -> list[Arm]:
        """One arm for each learning rate: a sweep's are named `NAME-lrRATE`."""
        if not self.is_sweep:
            return [self]
        return [
            replace(self, name=f"{self.name}-lr{rate:g}", learning_rate=rate) for rate in self.rates
        ]


@dataclass(kw_only=True)
class Evaluation:
    """What `rlsgd test` measures of every policy that a study has trained.

    Args:
        name: Names it in the report, and the folder of each of its runs.
        overrides: Dotted keys of the base config with the evaluation's values.
    """

    name: str
    overrides: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_folder_name("evaluations.name", self.name)


@dataclass(kw_only=True)
class Study:
    """Arms that share base weights, prompts and their order, and the seeds to repeat them with.

    Args:
        name: Names the study in its report.
        config: The `rlsgd fit` config every run starts from, relative to the study file, or a
            recipe's name.
        arms: The optimizers to compare.
        out: Folder of the runs and the report, relative to the current directory
            (default: runs/NAME).
        seeds: Every arm runs once with each seed; arms with the same seed see the same prompts.
        jobs: Runs at a time.
        threads_per_job: Threads of each run (OMP_NUM_THREADS and its like).
        question: Free text for the head of the report.
        learning_rates_chosen_by: Free text, printed beside every comparison; required when there
            is more than one arm.
        overrides: Dotted keys of the base config with this study's values.
        overlays: Further `rlsgd fit` configs, relative to the study file, that every run is given;
            they come after the overrides above, and before those of an arm.
        score: What decides: `accuracy` (of validation, higher is better) or `loss` (of validation,
            lower is better).
        measures: Further logged metrics for a table of the report, such as `update/displacement`.
        match: A metric that grows while a run trains, such as `update/displacement`: the report
            then also compares all arms where it has the same value, whatever epoch that was.
        evaluations: What `rlsgd test` measures of every trained policy, with `name` and
            `overrides`; the configs need the callback HFExport.
        published: File of published tables, relative to the study file.
        published_tables: Those that the report shows beside this study's numbers.
        launcher: Where runs are computed: as `processes` of this machine, or as jobs that
            `submitit` sends to a cluster.
        cluster: That submitit sends jobs to: `slurm`, or `local` for jobs on this machine.
        job: What a job may use, as arguments of `submitit.AutoExecutor.update_parameters`, such as
            `timeout_min`, `gpus_per_node` and `slurm_partition`.
        search: `optuna` lets Optuna choose the rates of swept arms, between the lowest and the
            highest of the list, and give up hopeless ones; none runs the list.
        trials: Rates that a search tries for each swept arm (default: as many as are listed).
    """

    name: str
    config: str
    arms: list[Arm]
    out: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    jobs: int = 1
    threads_per_job: int = 1
    question: str = ""
    learning_rates_chosen_by: str = ""
    overrides: Settings = field(default_factory=dict)
    overlays: list[str] = field(default_factory=list)
    score: Literal["accuracy", "loss"] = "accuracy"
    measures: list[str] = field(default_factory=list)
    match: str | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    published: str | None = None
    published_tables: list[str] = field(default_factory=list)
    launcher: Literal["processes", "submitit"] = "processes"
    cluster: Literal["slurm", "local"] = "slurm"
    job: Settings = field(default_factory=dict)
    search: Literal["optuna"] | None = None
    trials: int | None = None

    def __post_init__(self) -> None:
        _require_folder_name("name", self.name)
        if not self.arms:
            raise ValueError("arms is empty: give at least one arm")
        repeated = _repeated([arm.name for arm in self.arms]) or _repeated(
            [arm.name for arm in self.expanded_arms()]
        )
        if repeated:
            raise ValueError(f"arms.name {repeated!r} appears more than once: names must differ")
        if len(self.arms) > 1 and not self.learning_rates_chosen_by.strip():
            raise ValueError(
                "learning_rates_chosen_by is missing: say how the arms' learning rates were chosen,"
                " because a comparison of optimizers means nothing without it"
            )
        above: list[str] = []
        for arm in self.arms:
            if arm.after is not None and arm.after not in above:
                raise ValueError(
                    f"arms.after of {arm.name!r} is {arm.after!r}, which is no arm above it; a"
                    " swept arm is named with its rate, as in `sgd-lr0.1`"
                )
            above += [single.name for single in arm.expand()]
        if not self.seeds or min(self.seeds) < 0 or _repeated(self.seeds) is not None:
            raise ValueError(f"seeds must be different whole numbers from 0, not {self.seeds}")
        if (twice := _repeated([evaluation.name for evaluation in self.evaluations])) is not None:
            raise ValueError(f"evaluations.name {twice!r} appears more than once")
        if self.published_tables and self.published is None:
            raise ValueError("published_tables needs published: the file that has them")
        if self.search and not any(len(set(arm.rates)) > 1 for arm in self.arms):
            raise ValueError("search needs an arm whose learning_rate is a list of two or more")
        if self.search and any(arm.after for arm in self.arms):
            raise ValueError("search knows the rates of no arm beforehand: take `after` out")
        if self.trials is not None and (self.trials < 1 or not self.search):
            raise ValueError(f"trials must be at least 1, and needs search, not {self.trials}")
        for key in ("jobs", "threads_per_job"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")

    @property
    def folder(self) -> Path:
        """Where runs and report go."""
        return Path(self.out or f"runs/{self.name}")

    def expanded_arms(self) -> list[Arm]:
        """The arms with every sweep expanded, in the order of the file."""
        return [single for arm in self.arms for single in arm.expand()]


def study_parser() -> ArgumentParser:
    """The parser whose options are the keys of a study file."""
    parser = ArgumentParser(prog="rlsgd study", exit_on_error=False)
    parser.add_class_arguments(Study)
    return parser


def load_study(path: Path, *, overlays: Sequence[str] = (), **changes: Any) -> Study:
    """The study in a YAML file, with `changes` (None: keep the file's value) on top.

    Args:
        path: The file, or the name of a recipe.
        overlays: More of them, relative to the current directory or recipes, after the file's own.
        changes: Other values for keys of the study.

    Raises:
        ValueError: The file or its base config is missing, or a key is unknown or wrong.
    """
    path = find_config(str(path), "CONFIG")
    parser = study_parser()
    try:
        parsed = parser.parse_string(path.read_text(encoding="utf-8"))
        study = Study(**vars(parser.instantiate_classes(parsed)))
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    given = {key: value for key, value in changes.items() if value is not None}
    arms = [
        replace(
            arm,
            config=None if arm.config is None else _config_file(path, arm.config),
            overlays=[_config_file(path, overlay) for overlay in arm.overlays],
        )
        for arm in study.arms
    ]
    own = [_config_file(path, overlay) for overlay in study.overlays]
    given["overlays"] = [*own, *map(_overlay_file, overlays)]
    if study.published is not None:
        given["published"] = _config_file(path, study.published)
    return replace(study, config=_config_file(path, study.config), arms=arms, **given)


def _overlay_file(config: str) -> str:
    """Absolute path of a config that the command line names."""
    return str(find_config(config, "--overlay").resolve())


def _config_file(study: Path, config: str) -> str:
    """Absolute path of a config that a study file names: relative to itself, or a recipe."""
    found = find_named(study, config)
    if found is None:
        where = (study.parent / config).resolve()
        raise ValueError(f"{study}: config {config!r} does not exist ({where}), nor as a recipe")
    return str(found.resolve())


def _require_folder_name(key: str, value: str) -> None:
    if not _FOLDER_NAME.fullmatch(value) or value in _RESERVED_NAMES:
        raise ValueError(
            f"{key} {value!r} cannot name a folder: use letters, digits, '.', '_' and '-', starting"
            f" with a letter or digit, and none of {sorted(_RESERVED_NAMES)}"
        )


def _repeated(values: Sequence[Any]) -> Any:
    return next((value for value in values if values.count(value) > 1), None)
