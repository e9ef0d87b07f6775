"""`rlsgd study CONFIG`: run a study and write its report."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import DefaultHelpFormatter
from rich.console import Console

from rlsgd.core.command import run_command
from rlsgd.core.typed_parser import TypedParser
from rlsgd.study.arms import Arm, Evaluation, Study, load_study
from rlsgd.study.evaluations import evaluation_record, evaluation_runs
from rlsgd.study.expansion import expand_runs
from rlsgd.study.matched import add_matched
from rlsgd.study.plots import draw_plots
from rlsgd.study.processes import Processes
from rlsgd.study.progress import StudyProgress
from rlsgd.study.published import beside_published, published_tables, published_terminal
from rlsgd.study.report import markdown_report, terminal_table
from rlsgd.study.results import read_metrics, run_record, study_record
from rlsgd.study.runner import (
    FIT_COMMAND,
    KEPT,
    TEST_COMMAND,
    Interrupted,
    Launcher,
    run_all,
)
from rlsgd.study.scores import SCORES


def _jobs(study: Study) -> Launcher:
    from rlsgd.study.jobs import Jobs

    return Jobs(study.folder.resolve(), study.cluster, study.threads_per_job, study.job)


def _optuna(study: Study, progress: StudyProgress, **how: Any) -> Study:
    from rlsgd.study.search import searched

    return searched(study, progress, **how)


LAUNCHERS: dict[str, Callable[[Study], Launcher]] = {
    "processes": lambda study: Processes(study.threads_per_job),
    "submitit": _jobs,
}
SEARCHES: dict[str, Callable[..., Study]] = {"optuna": _optuna}

_DESCRIPTION = """\
Run every arm of a study with every seed, each in a process of its own, and write OUT/report.md,
OUT/results.json and OUT/plots. Runs that finished with the same configuration are kept, so the
same command goes on where it was interrupted. Exit status: 0 if no run failed, 1 if one did,
2 if CONFIG is wrong.
"""


class _HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the line breaks of description and epilog."""


def main(
    argv: Sequence[str],
    *,
    command: Sequence[str] = FIT_COMMAND,
    test_command: Sequence[str] = TEST_COMMAND,
) -> int:
    """Run `rlsgd study` and return its exit status.

    Args:
        argv: What follows `rlsgd study`.
        command: What a run launches, with `--config BASE --config OVERLAY` behind it.
        test_command: The same for an evaluation of what a run has trained.
    """
    return run_command(
        "study", argv, _parser(), lambda given: _study(given, argv, command, test_command)
    )


def _study(
    arguments: Any, argv: Sequence[str], command: Sequence[str], test_command: Sequence[str]
) -> int:
    console = Console()
    try:
        study = load_study(
            Path(arguments.CONFIG),
            out=arguments.out,
            jobs=arguments.jobs,
            seeds=arguments.seeds,
            overlays=arguments.overlay,
            launcher=arguments.launcher,
            cluster=arguments.cluster,
            search=arguments.search,
            trials=arguments.trials,
        )
        tables = published_tables(study)
        runs = expand_runs(study)
        tests = [evaluation_runs(study, run) for run in runs]
        out = study.folder.resolve()
        how: dict[str, Any] = {
            "jobs": study.jobs,
            "launcher": LAUNCHERS[study.launcher](study),
            "force": arguments.force,
        }
        with StudyProgress(len(runs) + sum(map(len, tests)), console) as progress:
            if study.search:
                study = SEARCHES[study.search](study, progress, command=command, **how)
                runs = expand_runs(study)
                tests = [evaluation_runs(study, run) for run in runs]
                how["kept"] = (*KEPT, "pruned")
                progress.expect(2 * len(runs) + sum(map(len, tests)))
            outcomes = run_all(runs, out, progress, command=command, **how)
            trained = zip(tests, outcomes, strict=True)
            due = [test for own, end in trained if end.status == "finished" for test in own]
            tested = run_all(due, out, progress, command=test_command, **how)
    except Interrupted as stop:
        print(f"rlsgd study: stopped by {stop}; run it again to go on", file=sys.stderr)
        return 128 + stop.signum
    ended = zip(runs, outcomes, strict=True)
    records = [run_record(study, run, outcome) for run, outcome in ended]
    metrics = [read_metrics(run.folder / "metrics.csv") for run in runs]
    results = study_record(study, shlex.join(["rlsgd", "study", *argv]), records)
    results["study"]["matched"] = add_matched(study, records, metrics)
    ends = {test.folder: end for test, end in zip(due, tested, strict=True)}
    for record, own in zip(records, tests, strict=True):
        record["evaluations"] = evaluation_record(own, ends)
    results["study"]["published"] = beside_published(tables, results)
    (out / "results.json").write_text(
        json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    plots = draw_plots(records, metrics, out, SCORES[study.score], study.match)
    (out / "report.md").write_text(markdown_report(results, plots), encoding="utf-8")
    console.print(terminal_table(results))
    for beside in results["study"]["published"]:
        console.print(published_terminal(beside))
    console.print(f"report: {study.folder / 'report.md'}", soft_wrap=True)
    if plots:
        console.print(f"plots: {(study.folder / plots[0][1]).parent}", soft_wrap=True)
    console.print(f"TensorBoard: tensorboard --logdir {study.folder}", soft_wrap=True)
    return int(any(outcome.status == "failed" for outcome in (*outcomes, *tested)))


def _parser() -> TypedParser:
    keys = "\n\n".join(f"Keys of {what}\n{_arguments(kind)}" for what, kind in _FILE.items())
    parser = TypedParser(
        prog="rlsgd study",
        description=_DESCRIPTION,
        epilog=keys,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument(
        "CONFIG",
        type=str,
        help="the study's YAML file, or the name of a recipe; its keys are listed below",
    )
    parser.add_argument("--out", type=str, help="instead of the file's out")
    parser.add_argument("--jobs", type=int, help="instead of the file's jobs")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the file's seeds")
    parser.add_argument(
        "--overlay",
        type=str,
        action="append",
        default=[],
        metavar="FILE",
        help="a config for every run besides its base config; may be given again",
    )
    for name, kind, meaning in (
        ("launcher", Literal["processes", "submitit"], "instead of the file's launcher"),
        ("cluster", Literal["slurm", "local"], "instead of the file's cluster"),
        ("search", Literal["optuna"], "instead of the file's search"),
        ("trials", int, "instead of the file's trials"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=meaning)
    parser.add_argument("--force", action="store_true", help="run also what is finished")
    return parser


_FILE = {"CONFIG:": Study, "each of its arms:": Arm, "each of its evaluations:": Evaluation}


def _arguments(kind: type) -> str:
    """The `Args:` of a class docstring, as they stand."""
    return (inspect.getdoc(kind) or "").partition("Args:\n")[2].rstrip()
