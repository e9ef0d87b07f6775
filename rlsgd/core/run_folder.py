"""The folder of a run: a name of its own, one writer at a time, nothing overwritten."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import IO, Any

from rlsgd.core.processes import identity

LOCK = ".lock"
ORDER = ".started"  # a number: later runs beside it have a larger one, whatever the clock says
LEFT_BY_A_RUN = ("config.yaml", "provenance.json", "metrics.csv", "checkpoints", "hf", "deltas")


class RunFolder:
    """A claimed folder. The lock is the kernel's: a process that dies, however, gives it back.

    Args:
        path: where the run writes.
        parents: folders that were made for it, outermost first.
    """

    def __init__(self, path: Path, parents: list[Path]) -> None:
        self.path = path
        self.parents = parents
        self.before = {entry.name for entry in path.iterdir()}
        self.lock: IO[str] | None = None

    @classmethod
    def new(cls, root: Path) -> RunFolder:
        """A folder in `root` named after the time, which no other process has or will get.

        Raises:
            OSError: it cannot be written to.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        made = _make(root)
        number = 1
        while True:
            path = root / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
            return cls(path, [*made, path])

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """A folder that the user named."""
        return cls(path, _make(path))

    def acquire(self) -> None:
        """Lock the folder until `release` or the end of this process.

        Raises:
            BlockingIOError: another process has it; its text says which.
        """
        lock = (self.path / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read()
            lock.close()
            raise BlockingIOError(error.errno, _named(holder), str(self.path)) from None
        lock.truncate(0)
        lock.write(json.dumps(identity(os.getpid())))
        lock.flush()
        self.lock = lock
        order = 1 + max((order_of(other) for other in self.path.parent.iterdir()), default=0)
        (self.path / ORDER).write_text(str(order), encoding="utf-8")

    def release(self) -> None:
        """Unlock. The file stays: another process may have it open already."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def undo(self) -> None:
        """Remove what was written since the claim, of a run that never began."""
        for entry in list(self.path.iterdir()):
            if entry.name not in self.before:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
        for folder in reversed(self.parents):
            try:
                folder.rmdir()
            except OSError:  # somebody else's by now
                break


def holds_run(path: Path) -> bool:
    """Whether a run has written to this folder."""
    return any((path / name).exists() for name in LEFT_BY_A_RUN) or any(
        path.glob("events.out.tfevents.*")
    )


def order_of(path: Path) -> int:
    """Larger for the run that was started or continued later than another beside it; 0: unknown."""
    try:
        return int((path / ORDER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _make(path: Path) -> list[Path]:
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return made[::-1]


def _named(holder: str) -> str:
    try:
        record: Any = json.loads(holder)
        return f"process {record['pid']} is running there"
    except (ValueError, TypeError, KeyError):
        return "another process is running there"
