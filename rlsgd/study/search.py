"""Learning rates that Optuna chooses, and runs that it gives up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rlsgd.study import runner
from rlsgd.study.arms import Study
from rlsgd.study.expansion import Run, expand_runs
from rlsgd.study.processes import Outcome
from rlsgd.study.results import epoch_series, read_metrics
from rlsgd.study.runner import Launcher, Monitor, leave_out, run_all
from rlsgd.study.scores import SCORES, Score

DATABASE = "search.db"  # in the study's folder
RATE, FAILED, OF = "learning_rate", "failed", "fingerprints"
RATES_BEFORE_PRUNING = 3
KEPT = (*runner.KEPT, "pruned")
SAID = (
    "searched by Optuna (TPE) in the listed range; a rate whose first seed was below the median of"
    " earlier ones at the same epoch was given up"
)


@dataclass
class Trial:
    """A rate, and what Optuna has been told of it.

    Args:
        asked: The trial of Optuna.
        runs: One for each seed, the first of which decides whether the others are run.
        score: That is reported.
    """

    asked: Any
    runs: list[Run]
    score: Score
    told: set[int] = field(default_factory=set)
    size: int = 0

    def is_hopeless(self) -> bool:
        """Report what the first run has measured since, and ask whether to give up."""
        path = self.runs[0].folder / "metrics.csv"
        size = path.stat().st_size if path.exists() else 0
        if size == self.size:
            return False
        self.size = size
        # the last row may not be whole yet; epoch 0 is the base model's
        series = epoch_series(read_metrics(path)[:-1], self.score.column)
        for epoch in sorted(series.keys() - self.told - {0}):
            self.told.add(epoch)
            self.asked.report(series[epoch], epoch)
        return bool(self.told) and self.asked.should_prune()

    def values(self) -> list[float]:
        """The final score of every seed that has one."""
        found = [
            epoch_series(read_metrics(run.folder / "metrics.csv"), self.score.column)
            for run in self.runs
        ]
        return [series[max(series)] for series in found if max(series, default=0) > 0]


def searched(
    study: Study,
    monitor: Monitor,
    *,
    jobs: int,
    launcher: Launcher,
    force: bool,
    command: Sequence[str],
) -> Study:
    """Run a search for each swept arm; the study with the rates that it tried, all of them run.

    Rates are between the lowest and the highest of the arm's list, chosen by Optuna's TPE. The
    first seed of each is watched: where its score is below the median of earlier rates after as
    many epochs it is stopped, and the other seeds are not run (Optuna's MedianPruner). Everything
    is in `search.db` in the study's folder, and a search that was killed goes on from there.

    Args:
        study: With `search`.
        monitor: Of the runs.
        jobs: Runs at a time.
        launcher: Of the runs.
        force: Refused.
        command: Of the runs.

    Raises:
        ValueError: Optuna is not installed, a search cannot be forced, or `search.db` was made with
            another configuration or other seeds.
    """
    if force:
        raise ValueError("--force: a search has no list of runs; use another --out")
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ValueError(f"--search optuna: {error}: pip install 'rlsgd[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out = study.folder.resolve()
    out.mkdir(parents=True, exist_ok=True)

    def run(runs: Sequence[Run], **how: Any) -> list[Outcome]:
        how |= {"jobs": jobs, "launcher": launcher, "command": command, "kept": KEPT}
        return run_all(runs, out, monitor, **how)

    arms = []
    for arm in study.arms:
        if len(set(arm.rates)) > 1:
            found = optuna.create_study(
                storage=f"sqlite:///{out / DATABASE}",
                study_name=arm.name,
                direction="maximize" if SCORES[study.score].sign > 0 else "minimize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=RATES_BEFORE_PRUNING),
            )
            alone = replace(study, arms=[arm], search=None, trials=None)
            _require_same(found, alone)
            _search(alone, found, study.trials or len(arm.rates), max(1, jobs), run)
            arm = replace(arm, learning_rate=tried(found))
        arms.append(arm)
    said = f"{study.learning_rates_chosen_by.strip()}; {SAID}".removeprefix("; ")
    return replace(study, arms=arms, search=None, trials=None, learning_rates_chosen_by=said)


def tried(found: Any) -> list[float]:
    """The rates whose runs have ended, in their order."""
    ended = [
        trial.params[RATE]
        for trial in found.trials
        if trial.state.name in ("COMPLETE", "PRUNED") or trial.user_attrs.get(FAILED)
    ]
    return list(dict.fromkeys(ended))


def _require_same(found: Any, study: Study) -> None:
    """Refuse to mix trials of two configurations; their rates alone may differ."""
    of = [run.fingerprint for run in _runs(study, 1.0)]
    if found.user_attrs.setdefault(OF, of) != of:
        raise ValueError(
            f"--search: {study.folder / DATABASE} was made with another configuration or other "
            f"seeds of arm {study.arms[0].name!r}; use another --out"
        )
    found.set_user_attr(OF, of)


def _search(study: Study, found: Any, trials: int, at_once: int, run: Callable[..., Any]) -> None:
    """Try rates of the one arm of `study` until there are so many."""
    import optuna

    [arm] = study.arms
    between = optuna.distributions.FloatDistribution(min(arm.rates), max(arm.rates), log=True)
    for trial in found.trials:
        if trial.state.name == "RUNNING":  # of a search that was killed: the same rate once more
            found.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            found.enqueue_trial(trial.params)
    while (left := trials - len(tried(found))) > 0:
        # a new seed each time, or a search that goes on would draw its first rates again
        found.sampler = optuna.samplers.TPESampler(seed=len(found.trials), constant_liar=True)
        asked = [found.ask({RATE: between}) for _ in range(min(left, at_once))]
        batch = [Trial(one, _runs(study, one.params[RATE]), SCORES[study.score]) for one in asked]
        first = {trial.runs[0]: trial for trial in batch}
        ends = run(list(first), is_hopeless=lambda run, first=first: first[run].is_hopeless())
        going_on = [t for t, end in zip(batch, ends, strict=True) if end.status == "finished"]
        run([run for trial in going_on for run in trial.runs[1:]])
        for trial in batch:
            _tell(found, trial, study.folder.resolve())


def _runs(study: Study, rate: float) -> list[Run]:
    [arm] = study.arms
    return expand_runs(replace(study, arms=[replace(arm, learning_rate=[rate])]))


def _tell(found: Any, trial: Trial, out: Path) -> None:
    """Tell Optuna how a rate ended; the seeds that were not run count as pruned."""
    from optuna.trial import TrialState

    trial.is_hopeless()  # reports what it measured since
    ends = [Outcome.of(run) or leave_out(run, out) for run in trial.runs]
    statuses = {end.status for end in ends}
    values = trial.values()
    if statuses == {"finished"} and len(values) == len(trial.runs):
        found.tell(trial.asked, fmean(values))
    elif "failed" in statuses or statuses == {"finished"}:  # or nothing was validated
        trial.asked.set_user_attr(FAILED, True)
        found.tell(trial.asked, state=TrialState.FAIL)
    else:
        found.tell(trial.asked, state=TrialState.PRUNED)
