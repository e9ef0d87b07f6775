"""Run a study's runs: launch, wait, skip what is done, stop cleanly."""

from __future__ import annotations

import fcntl
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rlsgd.study.expansion import Run
from rlsgd.study.processes import Outcome

FIT_COMMAND = (sys.executable, "-m", "rlsgd.cli.main", "fit")
TEST_COMMAND = (*FIT_COMMAND[:-1], "test")
KEPT = ("finished", "diverged")

_POLL_SECONDS = 0.05


class Interrupted(Exception):
    """The study was asked to stop (Ctrl-C or SIGTERM); its processes are gone."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Monitor(Protocol):
    """Told of what happens; see `rlsgd.study.progress` for the one that draws bars."""

    def started(self, run: Run) -> None: ...
    def running(self, run: Run) -> None: ...
    def ended(self, run: Run, outcome: Outcome, *, skipped: bool) -> None: ...


class Launcher(Protocol):
    """Where runs are computed: `Processes` of this machine, or `Jobs` of a cluster."""

    def recover(self, runs: Sequence[Run], out: Path) -> dict[Run, Any]:
        """What an earlier study left at work: ended, or, by its run, to be waited for."""
        ...

    def launch(self, run: Run, command: Sequence[str]) -> Any: ...

    def outcome(self, started: Any) -> Outcome | None:
        """How it ended; None as long as it has not."""
        ...

    def stop(self, started: Sequence[Any]) -> None:
        """End what is still at work."""
        ...


def is_never_hopeless(run: Run) -> bool:
    """No run is stopped early."""
    return False


def run_all(
    runs: Sequence[Run],
    out: Path,
    monitor: Monitor,
    *,
    jobs: int,
    launcher: Launcher,
    force: bool = False,
    kept: Collection[str] = KEPT,
    command: Sequence[str] = FIT_COMMAND,
    is_hopeless: Callable[[Run], bool] = is_never_hopeless,
) -> list[Outcome]:
    """Run every run that is not done already, `jobs` at a time, each in its own process.

    A run is done when its `run.json` says finished or diverged with the same fingerprint. The old
    folder of a run that starts again is moved to `out/.replaced`.

    Args:
        runs: The runs, started in this order; one that follows another waits for it.
        out: The study's folder; nothing outside it is written or moved.
        monitor: Told of every start, wait and end.
        jobs: Runs at a time.
        launcher: Starts and ends them.
        force: Run also what is done.
        kept: How a run has ended that is done.
        command: Launched with `--config BASE --config OVERLAY`.
        is_hopeless: Asked while a run is at work; it is then stopped, and its end is "pruned".

    Returns:
        The outcomes, in the order of `runs`.

    Raises:
        ValueError: Another study is running in `out`.
        Interrupted: SIGINT or SIGTERM came; every run was ended first.
    """
    out.mkdir(parents=True, exist_ok=True)
    outcomes: dict[Path, Outcome] = {}
    waiting: list[Run] = []
    at_work: dict[Run, Any] = {}

    def end(run: Run, outcome: Outcome) -> None:
        del at_work[run]
        outcomes[run.folder] = outcome
        monitor.ended(run, outcome, skipped=False)

    def reap() -> None:
        for run, started in list(at_work.items()):
            if (outcome := launcher.outcome(started)) is not None:
                end(run, outcome)

    with _exclusive(out), _caught_signals() as caught:
        for run in runs:
            done = None if force else Outcome.of(run)
            if done is None or done.status not in kept:
                waiting.append(run)
            else:
                outcomes[run.folder] = done
                monitor.ended(run, done, skipped=True)
        for run in waiting:
            _require_inside(run.folder, out)
        try:
            for run, started in launcher.recover(waiting, out).items():
                at_work[run] = started
                waiting.remove(run)
                monitor.started(run)
            while (waiting or at_work) and not caught:
                while len(at_work) < jobs and not caught:
                    run = next((run for run in waiting if run.after in {None, *outcomes}), None)
                    if run is None:
                        break
                    waiting.remove(run)
                    _clear(run.folder, out)
                    at_work[run] = launcher.launch(run, command)
                    monitor.started(run)
                time.sleep(_POLL_SECONDS)
                reap()
                for run, started in list(at_work.items()):
                    monitor.running(run)
                    if is_hopeless(run):
                        launcher.stop([started])
                        end(run, prune(run))
        finally:
            reap()  # a run that ended in this moment counts as what it is
            launcher.stop(list(at_work.values()))
        if caught:
            raise Interrupted(caught[0])
    return [outcomes[run.folder] for run in runs]


def prune(run: Run) -> Outcome:
    """Note that a run is given up, because its rate is hopeless."""
    run.folder.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(status="pruned", exit_status=0, seconds=0.0, fingerprint=run.fingerprint)
    outcome.write(run.folder)
    return outcome


def leave_out(run: Run, out: Path) -> Outcome:
    """Note the same of a run that was never begun; what is in its folder is of another one."""
    _require_inside(run.folder, out)
    _clear(run.folder, out)
    return prune(run)


def _require_inside(folder: Path, out: Path) -> None:
    if folder.resolve() != out.resolve() / folder.parent.name / folder.name:
        raise ValueError(f"--out: {folder} is a link to {folder.resolve()}; remove the link")


def _clear(folder: Path, out: Path) -> None:
    """Move what an earlier run left in `folder` aside, within `out`."""
    if not folder.exists():
        return
    replaced = out / ".replaced"
    replaced.mkdir(exist_ok=True)
    number = sum(1 for _ in replaced.iterdir()) + 1
    folder.rename(replaced / f"{number:04d}-{folder.parent.name}-{folder.name}")


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that none strikes between launch and record."""
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda signum, _frame: caught.append(signum)) for n in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"--out: another study is running in {out}; wait for it or change --out"
            raise ValueError(message) from error
        yield
