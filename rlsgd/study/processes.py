"""Runs as processes of this machine: started, waited for, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from rlsgd.study.expansion import Run
from rlsgd.study.orphans import end_orphans, life_lock, record_process

DIVERGED_EXIT_STATUS = 3  # `rlsgd fit`, on weights or a loss that are no longer finite

GRACE_SECONDS = 10.0  # between asking a process to end and killing it
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
OUTCOME = "run.json"
JOB = "job.json"  # in the folder of a run that was sent to a cluster


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended; written to its `run.json`.

    Args:
        status: "finished", "diverged" (non-finite weights or loss), "failed", or "pruned" (stopped
            by a search as hopeless).
        exit_status: Of the process.
        seconds: Wall-clock time of the process.
        fingerprint: Of the configuration that ran.
    """

    status: str
    exit_status: int
    seconds: float
    fingerprint: str

    def write(self, folder: Path) -> None:
        """Put it into the folder of the run, whole or not at all."""
        partial = folder / f"{OUTCOME}.partial"
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / OUTCOME)

    @classmethod
    def of(cls, run: Run) -> Outcome | None:
        """That of a run which has ended, if it ran with the same configuration."""
        try:
            found = cls(**json.loads((run.folder / OUTCOME).read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None
        return found if found.fingerprint == run.fingerprint else None


@dataclass
class Child:
    """A run at work."""

    run: Run
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    start: float

    def outcome(self) -> Outcome:
        """How it ended, which it has."""
        self.log.close()
        status = {0: "finished", DIVERGED_EXIT_STATUS: "diverged"}
        return Outcome(
            status=status.get(self.process.returncode, "failed"),
            exit_status=self.process.returncode,
            seconds=round(time.monotonic() - self.start, 1),
            fingerprint=self.run.fingerprint,
        )


@dataclass
class Processes:
    """Each run is a process with a session of its own.

    Args:
        threads: Of each.
    """

    threads: int

    def recover(self, runs: Sequence[Run], out: Path) -> dict[Run, Any]:
        """End what an earlier study left at work: a process cannot be taken over.

        Raises:
            ValueError: a run was sent to a cluster, and nothing says how that ended.
        """
        for run in runs:
            if (run.folder / JOB).exists() and not (run.folder / OUTCOME).exists():
                raise ValueError(
                    f"--launcher processes: {run.folder} was sent to a cluster: go on with "
                    "--launcher submitit, or cancel its job and remove the folder"
                )
        end_orphans(out, GRACE_SECONDS)
        return {}

    def launch(self, run: Run, command: Sequence[str]) -> Child:
        return start(run, command, self.threads)

    def outcome(self, started: Child) -> Outcome | None:
        if started.process.poll() is None:
            return None
        found = started.outcome()
        found.write(started.run.folder)
        return found

    def stop(self, started: Sequence[Child]) -> None:
        terminate(started)


def start(
    run: Run,
    command: Sequence[str],
    threads: int,
    *,
    more: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    ignored: signal.Signals | None = None,
) -> Child:
    """Start the process of a run.

    Args:
        run: Its folder is there already where the run goes on.
        command: Launched with `--config BASE --config OVERLAY`.
        threads: Of the process.
        more: Further arguments.
        variables: Of its environment, besides our own.
        ignored: A signal that the process does not get.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    overlay = run.folder / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(run.overlay, sort_keys=False), encoding="utf-8")
    log = (run.folder / "log.txt").open("ab")
    # A session of its own: Ctrl-C reaches the study alone, and ending it takes its workers along.
    handler = signal.signal(ignored, signal.SIG_IGN) if ignored else None  # it is inherited
    with life_lock(run.folder) as lock:
        process = subprocess.Popen(
            [*command, "--config", str(run.config), "--config", str(overlay), *more],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(threads) | dict(variables or {}),
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
    if ignored:
        signal.signal(ignored, handler)
    record_process(run.folder, process.pid)
    return Child(run, process, log, time.monotonic())


def terminate(children: Sequence[Child]) -> None:
    """Ask all to end, and kill those that have not after a while."""
    for child in children:
        _signal(child, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, deadline - time.monotonic()))
        _signal(child, signal.SIGKILL)  # also its workers, should they have outlived it
        child.process.wait()
        child.log.close()


def _signal(child: Child, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.process.pid, signum)


def _environment(threads: int) -> dict[str, str]:
    limits = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return os.environ | limits | {"PYTHONUNBUFFERED": "1"}
