"""Runs `rlsgd` commands in forks of one process that has imported everything: a second each.

A line on standard input is a command as JSON, the arguments of `ForkServer.run`. A line on standard
output is the list of its ranks' exit statuses, -9 for one that was killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

# threads do not survive a fork; an exported tokenizer says whether the hub could be reached
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
GRACE_SECONDS = 60.0  # for the other ranks when one has failed by itself
ROOT = Path(__file__).absolute().parents[1]


class ForkServer:
    """The process that forks, from the side of who wants commands to be run."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), **ENVIRONMENT},
        )
        assert self._answer() == "ready", "the process that forks did not start"

    def run(
        self,
        folder: Path,
        argv: list[str],
        *,
        ranks: int = 1,
        fault: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> list[int]:
        """Exit statuses of all ranks of `rlsgd ARGV`; what it prints is added to `output.txt`.

        Args:
            folder: where it runs.
            argv: the command without its first word.
            ranks: processes.
            fault: arguments of `fault_points.arm`, and the `rank` that it is for.
            env: environment variables.
        """
        job = {"folder": str(folder), "argv": argv, "ranks": ranks, "fault": fault, "env": env}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self._answer())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def import_everything() -> None:
    """Import what a fit needs, and start nothing."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import torch.utils.tensorboard
    import transformers.models.llama.modeling_llama  # noqa: F401

    import rlsgd.cli.training  # noqa: F401

    torch.set_num_threads(1)


def run_rank(job: dict[str, Any], rank: int, port: int) -> int:
    """In the fork: the command, as Lightning would start it on this rank."""
    os.chdir(job["folder"])
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(job["env"] or {})
    sys.argv = ["rlsgd", *job["argv"]]
    if job["ranks"] > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(job["ranks"]), **address)
    fault = job["fault"]
    if fault and fault.get("rank", 0) == rank:
        from benchmarks.fault_points import arm

        arm(**{key: value for key, value in fault.items() if key != "rank"})
    from rlsgd.cli.main import main

    return main(job["argv"])


def fork(job: dict[str, Any], rank: int, port: int) -> int:
    """Process id of a fork that runs one rank."""
    if child := os.fork():
        return child
    os.setpgid(0, 0)
    status = 1
    try:
        status = run_rank(job, rank, port)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(job: dict[str, Any]) -> list[int]:
    """All ranks of a command. Where one is killed the others are, as by Lightning's launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = {fork(job, rank, port): rank for rank in range(job["ranks"])}
    groups = list(running)
    codes: dict[int, int] = {}
    deadline = None
    while running:
        child, status = os.waitpid(-1, os.WNOHANG if deadline else 0)
        if child in running:
            code = os.waitstatus_to_exitcode(status)
            codes[running.pop(child)] = code
            if code < 0:
                deadline = time.monotonic()
            elif code and deadline is None:
                deadline = time.monotonic() + GRACE_SECONDS
        elif child == 0:
            time.sleep(0.02)
        if deadline is not None and time.monotonic() >= deadline:
            for left in running:
                os.kill(left, signal.SIGKILL)
            deadline = float("inf")
    for group in groups:  # what a killed rank has left behind: verifiers, an engine
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    return [codes[rank] for rank in sorted(codes)]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    import_everything()
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
