"""Run a study's processes: launch, wait, skip what is done, stop cleanly."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Protocol

import yaml

from rlsgd.study.expansion import Run
from rlsgd.study.orphans import end_orphans, life_lock, record_process

FIT_COMMAND = (sys.executable, "-m", "rlsgd.cli.main", "fit")
TEST_COMMAND = (*FIT_COMMAND[:-1], "test")
DIVERGED_EXIT_STATUS = 3  # `rlsgd fit`, on weights or a loss that are no longer finite

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 10.0  # between asking a process to end and killing it
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class Interrupted(Exception):
    """The study was asked to stop (Ctrl-C or SIGTERM); its processes are gone."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended; written to its `run.json`.

    Args:
        status: "finished", "diverged" (non-finite weights or loss) or "failed".
        exit_status: Of the process.
        seconds: Wall-clock time of the process.
        fingerprint: Of the configuration that ran.
    """

    status: str
    exit_status: int
    seconds: float
    fingerprint: str


class Monitor(Protocol):
    """Told of what happens; see `rlsgd.study.progress` for the one that draws bars."""

    def started(self, run: Run) -> None: ...
    def running(self, run: Run) -> None: ...
    def ended(self, run: Run, outcome: Outcome, *, skipped: bool) -> None: ...


@dataclass
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    start: float


def run_all(
    runs: Sequence[Run],
    out: Path,
    monitor: Monitor,
    *,
    jobs: int,
    threads_per_job: int,
    force: bool = False,
    command: Sequence[str] = FIT_COMMAND,
) -> list[Outcome]:
    """Run every run that is not done already, `jobs` at a time, each in its own process.

    A run is done when its `run.json` says finished or diverged with the same fingerprint. The old
    folder of a run that starts again is moved to `out/.replaced`.

    Args:
        runs: The runs, started in this order; one that follows another waits for it.
        out: The study's folder; nothing outside it is written or moved.
        monitor: Told of every start, wait and end.
        jobs: Runs at a time.
        threads_per_job: Threads of each process.
        force: Run also what is done.
        command: Launched with `--config BASE --config OVERLAY`.

    Returns:
        The outcomes, in the order of `runs`.

    Raises:
        ValueError: Another study is running in `out`.
        Interrupted: SIGINT or SIGTERM came; every process was ended first.
    """
    out.mkdir(parents=True, exist_ok=True)
    outcomes: dict[Path, Outcome] = {}
    waiting: list[Run] = []
    children: list[_Child] = []
    environment = _environment(threads_per_job)

    def reap() -> None:
        for child in [child for child in children if child.process.poll() is not None]:
            children.remove(child)
            outcomes[child.run.folder] = outcome = _finish(child)
            monitor.ended(child.run, outcome, skipped=False)

    with _exclusive(out), _caught_signals() as caught:
        end_orphans(out, _GRACE_SECONDS)
        for run in runs:
            done = None if force else _done(run)
            if done is None:
                waiting.append(run)
            else:
                outcomes[run.folder] = done
                monitor.ended(run, done, skipped=True)
        for run in waiting:
            _require_inside(run.folder, out)
        try:
            while (waiting or children) and not caught:
                while len(children) < jobs and not caught:
                    run = next((run for run in waiting if run.after in {None, *outcomes}), None)
                    if run is None:
                        break
                    waiting.remove(run)
                    _clear(run.folder, out)
                    children.append(_launch(run, command, environment))
                    monitor.started(run)
                time.sleep(_POLL_SECONDS)
                reap()
                for child in children:
                    monitor.running(child.run)
        finally:
            reap()  # a run that ended in this moment counts as what it is
            _terminate(children)
        if caught:
            raise Interrupted(caught[0])
    return [outcomes[run.folder] for run in runs]


def _environment(threads: int) -> dict[str, str]:
    limits = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return os.environ | limits | {"PYTHONUNBUFFERED": "1"}


def _launch(run: Run, command: Sequence[str], environment: dict[str, str]) -> _Child:
    run.folder.mkdir(parents=True)
    overlay = run.folder / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(run.overlay, sort_keys=False), encoding="utf-8")
    log = (run.folder / "log.txt").open("wb")
    # A session of its own: Ctrl-C reaches the study alone, and ending it takes its workers along.
    with life_lock(run.folder) as lock:
        process = subprocess.Popen(
            [*command, "--config", str(run.config), "--config", str(overlay)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
    record_process(run.folder, process.pid)
    return _Child(run, process, log, time.monotonic())


def _finish(child: _Child) -> Outcome:
    child.log.close()
    status = {0: "finished", DIVERGED_EXIT_STATUS: "diverged"}
    outcome = Outcome(
        status=status.get(child.process.returncode, "failed"),
        exit_status=child.process.returncode,
        seconds=round(time.monotonic() - child.start, 1),
        fingerprint=child.run.fingerprint,
    )
    partial = child.run.folder / "run.json.partial"
    partial.write_text(json.dumps(asdict(outcome), indent=2) + "\n", encoding="utf-8")
    partial.replace(child.run.folder / "run.json")
    return outcome


def _done(run: Run) -> Outcome | None:
    try:
        outcome = Outcome(**json.loads((run.folder / "run.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    same = outcome.fingerprint == run.fingerprint
    return outcome if same and outcome.status in {"finished", "diverged"} else None


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


def _terminate(children: list[_Child]) -> None:
    for child in children:
        _signal(child, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, deadline - time.monotonic()))
        _signal(child, signal.SIGKILL)  # also its workers, should they have outlived it
        child.process.wait()
        child.log.close()


def _signal(child: _Child, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.process.pid, signum)


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
