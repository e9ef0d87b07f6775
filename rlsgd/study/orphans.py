"""Runs that outlived their study: found by a lock that they inherit, ended by their identity."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rlsgd.core.processes import group_members, identity, is_alive

ALIVE = ".alive"  # locked as long as a process of the run lives
PROCESS = "process.json"
_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0


def life_lock(folder: Path) -> IO[str]:
    """A locked file for a run's process to inherit; the study closes its own copy.

    The lock is there before the process is, so that no moment is without it.
    """
    lock = (folder / ALIVE).open("w", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def record_process(folder: Path, pid: int) -> None:
    """Note which process it is, which leads a group of its own."""
    (folder / PROCESS).write_text(json.dumps(identity(pid)) + "\n", encoding="utf-8")


def end_orphans(out: Path, grace_seconds: float, *, spared: Collection[Path] = ()) -> None:
    """End every run in a study's folder that an earlier study, killed since, has left at work.

    Args:
        out: the study's folder, which no other study is running in.
        grace_seconds: between asking a run to end and killing it.
        spared: folders of runs that are not ended.

    Raises:
        ValueError: a run's process lives and cannot be told from others.
    """
    for lock in sorted(out.glob(f"*/*/{ALIVE}")):
        if lock.parent not in spared and _is_held(lock):
            end_run(lock.parent, grace_seconds, is_orphan=True)


def end_run(folder: Path, grace_seconds: float, *, is_orphan: bool = False) -> None:
    """End the processes of one run, if there are any.

    Args:
        folder: of the run.
        grace_seconds: between asking it to end and killing it.
        is_orphan: say that it outlived its study.

    Raises:
        ValueError: its process lives and cannot be told from others, or cannot be ended.
    """
    lock = folder / ALIVE
    if not lock.exists() or not _is_held(lock):
        return
    record = _recorded(folder)
    pid = record.get("pid") if record else None
    if record is None or not isinstance(pid, int) or not (is_alive(record) or group_members(pid)):
        raise ValueError(
            f"--out: {folder} is still written to by a process of an earlier study, which "
            f"{folder / PROCESS} does not name; end it, or change --out"
        )
    if is_orphan:
        print(
            f"rlsgd study: {folder}: process {pid} of a study that was killed is still at work; it "
            "is ended, and the run begins anew",
            file=sys.stderr,
            flush=True,
        )
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, _KILL_SECONDS)):
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not _is_held(lock):
                return
            time.sleep(_POLL_SECONDS)
    raise ValueError(f"--out: process {pid} in {folder} cannot be ended; end it, or change --out")


def _is_held(lock: Path) -> bool:
    with lock.open("r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _recorded(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / PROCESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
