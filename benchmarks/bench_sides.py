"""The two sides of the benchmark as processes that take turns."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.bench_cases import SEED, Case, model_folder, questions
from benchmarks.bench_check import compare
from benchmarks.bench_worker import environment

TOOLS = Path(__file__).parent
SIDES = ("rlsgd", "trl")
CHECK_PROMPTS = 2
# in the last iterations of rlsgd's worker, each by itself: its cost is shared out over its cadence
DIAGNOSED = ("UpdateSparsity", "EffectiveRank", "checkpoint")
Overrides = dict[str, list[str]]


class Worker:
    """One side in a process of its own.

    Args:
        side: `rlsgd` or `trl`.
        settings: of the worker.
    """

    def __init__(self, side: str, settings: dict[str, Any]) -> None:
        ours, its = socket.socketpair()
        path = write_settings(settings | {"descriptor": its.fileno()})
        self.log = path.with_name("log.txt")
        threads, descriptors = settings["threads"], (its.fileno(),)
        self.process = start(f"bench_{side}.py", [path], self.log, threads, descriptors)
        its.close()
        self.stream = ours.makefile("rw", encoding="utf-8")

    def iterate(self, diagnose: tuple[str, ...] = ()) -> dict[str, Any]:
        """Run one iteration; what it reports."""
        try:
            self.stream.write(json.dumps({"diagnose": diagnose}) + "\n")
            self.stream.flush()
            line = self.stream.readline()
        except OSError:
            line = ""
        if not line:
            raise RuntimeError(f"a worker has ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stream.close()


def start(
    program: str,
    settings: list[Path],
    log: Path,
    threads: int,
    descriptors: tuple[int, ...] = (),
) -> subprocess.Popen:
    """One of the tools as a process that writes to `log`."""
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, str(TOOLS / program), *map(str, settings)],
            env=environment(threads) | {"PYTHONPATH": python_path()},
            pass_fds=descriptors,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def write_settings(settings: dict[str, Any]) -> Path:
    """A worker's settings in a new folder, which is its own."""
    folder = Path(settings["folder"])
    folder.mkdir(parents=True)
    path = folder / "settings.json"
    path.write_text(json.dumps(settings))
    return path


def python_path() -> str:
    """The tools, by which a config names their classes, and what there is already."""
    return os.pathsep.join([str(TOOLS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])


def worker_settings(
    case: Case, folder: Path, side: str, overrides: Overrides, **more: Any
) -> dict[str, Any]:
    """What a worker is told.

    Args:
        case: what to run.
        folder: for everything of this case; the worker's own is below.
        side: `rlsgd` or `trl`.
        overrides: further `key=value` by side.
        more: `iterations`, `threads`, and so on.
    """
    prompts = questions(case, more["iterations"]) if side == "trl" else []
    return {
        "diagnostics": False,
        **asdict(case),
        "model": model_folder(case.model, folder.parent),
        "seed": SEED,
        "folder": str(folder / side),
        "question_list": prompts,
        "overrides": overrides[side],
        **more,
    }


@contextmanager
def workers(
    case: Case, folder: Path, overrides: Overrides, threads: int, sides: tuple[str, ...] = SIDES
) -> Iterator[dict[str, Worker]]:
    """Both sides, about to load their models; ended afterwards."""
    iterations = {"rlsgd": 1 + case.repeats + len(DIAGNOSED), "trl": 1 + case.repeats}
    started: dict[str, Worker] = {}
    try:
        for side in sides:
            settings = worker_settings(
                case,
                folder,
                side,
                overrides,
                iterations=iterations[side],
                threads=threads,
                diagnostics=side == "rlsgd",
            )
            started[side] = Worker(side, settings)
        yield started
    finally:
        for worker in started.values():
            worker.close()


def check_settings(
    case: Case, folder: Path, overrides: Overrides, threads: int
) -> tuple[Path, list[Path]]:
    """The settings of both sides for one iteration of a few prompts, and where they leave it."""
    few = replace(case, prompts=min(case.prompts, CHECK_PROMPTS))
    kept = folder / "check"
    kept.mkdir(parents=True)
    settings = [
        worker_settings(few, folder, side, overrides, iterations=1, threads=threads)
        | {"check": str(kept), "folder": str(folder / f"check_{side}")}
        for side in SIDES
    ]
    return kept, [write_settings(one) for one in settings]


def check(case: Case, folder: Path, overrides: Overrides, threads: int) -> dict[str, Any]:
    """Loss and gradients of both sides on the same rollout."""
    kept, settings = check_settings(case, folder, overrides, threads)
    log = kept / "log.txt"
    if start("bench_agree.py", settings, log, threads).wait():
        raise RuntimeError(f"{case.name}: the check failed:\n{log.read_text()[-3000:]}")
    return compare(kept)


def measure(
    case: Case, folder: Path, overrides: Overrides, threads: int, progress: Progress
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, Any]]]:
    """Iterations of both sides in turns, the first of each left out; then rlsgd's diagnostics.

    Returns:
        The reports of each side, and one of an iteration with each of `DIAGNOSED`.
    """
    with workers(case, folder, overrides, threads) as sides:
        total = 1 + case.repeats
        bar = progress.add_task(case.name, total=2 * total + len(DIAGNOSED))
        reports: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(total):
            for side, worker in sides.items():
                reports[side].append(worker.iterate())
                progress.advance(bar)
            require_same(reports)
        diagnosed = {}
        for name in DIAGNOSED:
            diagnosed[name] = sides["rlsgd"].iterate((name,))
            progress.advance(bar)
    return {side: found[1:] for side, found in reports.items()}, diagnosed


def require_same(reports: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse to compare iterations of other prompts or another number of tokens.

    Raises:
        RuntimeError: says which.
    """
    for fact in ("prompts", "tokens"):
        ours, theirs = (reports[side][-1][fact] for side in SIDES)
        if ours != theirs:
            raise RuntimeError(f"iteration {len(reports['trl'])}: {fact} are {ours} and {theirs}")
