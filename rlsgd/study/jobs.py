"""Runs as jobs of a cluster, sent through submitit, which also requeues them."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsgd.core.processes import identity, is_alive
from rlsgd.study.expansion import Run
from rlsgd.study.orphans import end_orphans, end_run
from rlsgd.study.processes import GRACE_SECONDS, JOB, OUTCOME, Child, Outcome, start

FILES = ".jobs"  # of submitit, in the folder of the study
_POLL_SECONDS = 0.1
_LATE_SECONDS = 15.0  # what a node wrote may be seen later than that its job has ended


@dataclass
class Work:
    """What a node computes: the process of one run, whose end it writes to `run.json`.

    A job that is queued again goes on with the run, from its last checkpoint where it saves any.

    Args:
        run: The run.
        command: Launched with `--config BASE --config OVERLAY`.
        threads: Of the process.
        token: Written in `job.json` too; a job that finds another there is not wanted any more.
    """

    run: Run
    command: tuple[str, ...]
    threads: int
    token: str
    child: Child | None = None

    def __call__(self) -> None:
        if not self.is_wanted():
            print(f"{self.run.folder}: was given to another job; nothing to do", flush=True)
            return
        begun = (self.run.folder / "config.yaml").exists()
        self.child = start(
            self.run,
            self.command,
            self.threads,
            more=["--ckpt_path", "last"] if begun else [],
            # one process of a job is a run; Lightning shall start further ranks, and queue nothing
            variables={"SLURM_JOB_NAME": "interactive"},
            ignored=signal.SIGUSR2,  # which reaches every process of a job, and is for this one
        )
        try:
            while self.child.process.poll() is None:  # `checkpoint` may come in between
                time.sleep(_POLL_SECONDS)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(self.child.process.pid, signal.SIGKILL)
            raise
        if self.is_wanted():
            self.child.outcome().write(self.run.folder)

    def checkpoint(self) -> Any:
        """Called by submitit before the job is queued again: the iteration is finished first."""
        from submitit.helpers import DelayedSubmission

        if self.child is not None and identity(pid := self.child.process.pid):
            os.kill(pid, signal.SIGTERM)
            while identity(pid):  # not `wait`: this is a signal's handler, `poll` may hold its lock
                time.sleep(_POLL_SECONDS)
        return DelayedSubmission(Work(self.run, self.command, self.threads, self.token))

    def is_wanted(self) -> bool:
        """Whether the run's folder is still that of this job."""
        return _record(self.run).get("token") == self.token


@dataclass
class Sent:
    """A run that was sent, by this study or an earlier one."""

    run: Run
    job: Any
    process: dict[str, Any] | None  # that leads a local job
    ended_at: float | None = None

    def is_over(self) -> bool:
        """Whether the job has ended, as the cluster or the kernel says."""
        return self.job.done() if self.process is None else not is_alive(self.process)

    def cancel(self) -> None:
        """End the job, which writes nothing any more; a local one has then ended."""
        (self.run.folder / JOB).unlink(missing_ok=True)
        if self.process is None:
            self.job.cancel(check=False)
        while self.process is not None and not self.is_over():
            with suppress(ValueError):  # it may not have named its process yet
                end_run(self.run.folder, GRACE_SECONDS)
            time.sleep(_POLL_SECONDS)


class Jobs:
    """Each run is a job.

    Args:
        out: The study's folder, which all nodes see.
        cluster: `slurm`, or `local` for processes of this machine that submitit treats as jobs.
        threads: Of each run.
        parameters: Of `submitit.AutoExecutor.update_parameters`.

    Raises:
        ValueError: submitit or the cluster is not there, or a parameter is unknown.
    """

    def __init__(self, out: Path, cluster: str, threads: int, parameters: dict[str, Any]) -> None:
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise ValueError(f"--launcher submitit: {error}: pip install 'rlsgd[slurm]'") from error
        if not parameters.get("timeout_min"):
            raise ValueError(
                "--launcher submitit: job.timeout_min is missing in CONFIG: say after how many "
                "minutes a run is queued again"
            )
        for key in ("nodes", "tasks_per_node"):
            if parameters.get(key, 1) != 1:
                raise ValueError(
                    f"--launcher submitit: job.{key} must be 1 in CONFIG: a run is one process, "
                    "which starts one more for each further device of its node"
                )
        self.threads, self.cluster = threads, cluster
        self.job_class = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[cluster]
        try:
            self.executor = submitit.AutoExecutor(out / FILES, cluster=cluster)
            self.executor.update_parameters(**parameters)
        except (RuntimeError, NameError, TypeError, AssertionError) as error:
            first = str(error).partition("\n")[0]
            raise ValueError(f"--launcher submitit, cluster {cluster}: {first}") from error

    def recover(self, runs: Sequence[Run], out: Path) -> dict[Run, Any]:
        """Runs whose jobs an earlier study sent and that have not ended: they are waited for."""
        end_orphans(out, GRACE_SECONDS, spared=[run.folder for run in runs if _record(run)])
        found = {}
        for run in runs:
            record = _record(run)
            if not record or (run.folder / OUTCOME).exists():
                continue
            if "id" not in record:
                raise ValueError(
                    f"--out: {run.folder}: an earlier study was killed while it sent this run, and "
                    "its job may be queued: cancel that, remove the folder, and run it again"
                )
            job = self.job_class(out / FILES, record["id"])
            sent = Sent(run, job, record["process"])
            if sent.is_over():
                continue
            if record["fingerprint"] == run.fingerprint and record["cluster"] == self.cluster:
                found[run] = sent
            else:
                raise ValueError(
                    f"--out: {run.folder}: job {record['id']} of {record['cluster']} runs there "
                    "with another configuration; wait for it or cancel it"
                )
        return found

    def launch(self, run: Run, command: Sequence[str]) -> Sent:
        run.folder.mkdir(parents=True)
        (run.folder / "log.txt").touch()
        record = {
            "token": uuid.uuid4().hex,
            "cluster": self.cluster,
            "fingerprint": run.fingerprint,
        }
        _write(run, record)  # before the job can begin
        try:
            job = self.executor.submit(Work(run, tuple(command), self.threads, record["token"]))
        except RuntimeError as error:  # the cluster refused it
            (run.folder / JOB).unlink()
            raise ValueError(f"--launcher submitit: {error}") from error
        process = identity(int(job.job_id)) if self.cluster == "local" else None
        _write(run, {**record, "id": job.job_id, "process": process})
        return Sent(run, job, process)

    def outcome(self, started: Sent) -> Outcome | None:
        """What the job wrote; "failed" where it ended and wrote nothing."""
        is_over = started.is_over()  # asked first, so that what it wrote before is seen
        if (found := Outcome.of(started.run)) is not None:
            return found
        if not is_over:
            return None
        if started.ended_at is None:
            started.ended_at = time.monotonic()
        if started.process is None and time.monotonic() - started.ended_at < _LATE_SECONDS:
            return None
        with (started.run.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"job {started.job.job_id} ended; see {started.job.paths.stderr}\n")
        failed = Outcome(
            status="failed", exit_status=-1, seconds=0.0, fingerprint=started.run.fingerprint
        )
        failed.write(started.run.folder)
        return failed

    def stop(self, started: Sequence[Sent]) -> None:
        for one in started:
            one.cancel()


def _record(run: Run) -> dict[str, Any]:
    try:
        return json.loads((run.folder / JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write(run: Run, record: dict[str, Any]) -> None:
    partial = run.folder / f"{JOB}.partial"
    partial.write_text(json.dumps(record) + "\n", encoding="utf-8")
    partial.replace(run.folder / JOB)
