"""The walls around a verifier: a worker that has imported its libraries, and can do nothing else.

A program of a test sees the standard library alone. A verifier needs the packages that it imports,
some of them late, so it may read code: Python's folder, installed packages and the modules of the
project, without the assets of this package (problems with their tests and solutions).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rlsgd
from rlsgd.rewards.sandbox.base import SCRATCH_FILES, find_bwrap
from rlsgd.rewards.sandbox.filter import seccomp_filter
from rlsgd.rewards.sandbox.landlock import landlock_shortcomings
from rlsgd.rewards.sandbox.python import library_path

SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
HIDDEN = Path(rlsgd.__file__).parent / "assets"
# Place, bytes and files; not in /tmp, below which code may lie.
SCRATCH = ("/scratch", 16 * 2**20, SCRATCH_FILES)
BEFORE = "/sys"  # is empty, and can be written to, until the wall is shut
DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
# One thread, so that the process can fork.
ENVIRONMENT = {
    **{"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")},
}
_BOOT = "import sys; sys.path[:] = {path!r}; from rlsgd.rewards.worker import main; main({pipe})"


class Wall(ABC):
    """A way to start `worker.py`, and what it gives up once it has imported the reward."""

    name = "no wall"

    @property
    def shortcomings(self) -> list[str]:
        """What this machine lacks of what the wall can promise, in words."""
        return []

    @abstractmethod
    def plan(self, more: Iterable[str]) -> dict[str, Any]:
        """What `worker.shut` is to do; `more` are files that the reward is defined in."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command up to Python."""

    def environment(self) -> dict[str, str]:
        """Nothing of the trainer's but where Python's own libraries are."""
        return {**ENVIRONMENT, **library_path()}

    def start(self, pipe: int) -> subprocess.Popen[bytes]:
        """Start the worker, with pipes on its three channels.

        Args:
            pipe: reading end of a pipe; the worker ends when the writing end is closed.

        Raises:
            SandboxError: if a command is missing.
            OSError: if a command cannot be started.
        """
        boot = _BOOT.format(path=[os.path.abspath(path) for path in sys.path], pipe=pipe)
        return subprocess.Popen(
            [*self.command(), sys.executable, "-X", "utf8", "-c", boot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(),
            start_new_session=True,
            pass_fds=(pipe,),
        )


class BubblewrapWall(Wall):
    """Namespaces; the root folder changes, and root becomes `nobody`, when all is imported.

    Until then the files are there, read-only, so that `Reward.prepare` may load some. As root
    `bwrap` makes no user namespace, since one could map its own user only to root's.
    """

    name = "Bubblewrap"

    def plan(self, more: Iterable[str]) -> dict[str, Any]:
        return {
            "root": {
                "places": [str(place) for place in outermost([*readable_files(more), *more])],
                "hidden": str(HIDDEN),
                "devices": list(DEVICES),
                "scratch": SCRATCH,
            },
            "file_bytes": SCRATCH[1],
            "leave_root": os.geteuid() == 0,
            "filter": seccomp_filter(threads=False),
        }

    def command(self) -> list[str]:
        is_root = os.geteuid() == 0
        spaces = ("ipc", "pid", "net", "uts", "cgroup-try", *(() if is_root else ("user",)))
        capabilities = ("SYS_ADMIN", *(("SETUID", "SETGID") if is_root else ()))
        return [
            *(find_bwrap(), *(f"--unshare-{space}" for space in spaces)),
            *("--cap-drop", "ALL"),
            *(word for name in capabilities for word in ("--cap-add", f"CAP_{name}")),
            *("--new-session", "--hostname", "sandbox", "--ro-bind", "/", "/"),
            *(word for device in DEVICES for word in ("--dev-bind", device, device)),
            *("--tmpfs", BEFORE, "--"),
        ]

    def environment(self) -> dict[str, str]:
        """A library may write while it is imported: to a folder that is gone afterwards."""
        return {**super().environment(), "HOME": BEFORE, "TMPDIR": BEFORE}


class LandlockWall(Wall):
    """Landlock, and no capabilities; the user stays, who may be the only one to read the code."""

    name = "Landlock"

    @property
    def shortcomings(self) -> list[str]:
        return landlock_shortcomings()

    def environment(self) -> dict[str, str]:
        """A library may read its settings while it is imported; then they are gone."""
        places = {"HOME": os.path.expanduser("~"), "TMPDIR": tempfile.gettempdir()}
        return {**super().environment(), **places}

    def plan(self, more: Iterable[str]) -> dict[str, Any]:
        places = outermost([*readable_files(more), *more])
        readable = [str(part) for place in places for part in without(place, HIDDEN)]
        return {"readable": readable, "filter": seccomp_filter(threads=False)}

    def command(self) -> list[str]:
        return []


class NoWall(Wall):
    """A worker with the trainer's own rights and environment."""

    def plan(self, more: Iterable[str]) -> dict[str, Any]:
        return {}

    def command(self) -> list[str]:
        return []

    def environment(self) -> dict[str, str]:
        return dict(os.environ)


WALLS: tuple[type[Wall], ...] = (BubblewrapWall, LandlockWall)


def readable_files(more: Iterable[str]) -> list[Path]:
    """Python, its libraries, installed packages, and the modules beside the project's scripts."""
    base = Path(os.path.realpath(sys.executable))
    found = [Path(path) for path in SYSTEM]
    found += [base, Path(sys.executable), Path(sys.prefix, "pyvenv.cfg"), Path(sys.prefix, "lib")]
    found += [Path(os.__file__).parent, *Path(sys.base_prefix, "lib").glob("lib*.so*")]
    found += [Path(rlsgd.__file__).parent]
    for folder in map(Path, sys.path):
        if folder.name in ("site-packages", "dist-packages", "lib-dynload") or os.path.isfile(
            folder
        ):
            found.append(folder)
        elif os.access(folder, os.R_OK):
            found += [entry for entry in folder.iterdir() if _is_module(entry)]
    return [path.absolute() for path in found if os.path.exists(path)]


def _is_module(entry: Path) -> bool:
    return entry.suffix in (".py", ".so") or os.path.isfile(entry / "__init__.py")


def outermost(paths: Iterable[Path | str]) -> list[Path]:
    """The paths less those that lie in another of them."""
    kept: list[Path] = []
    for path in sorted(map(Path, paths)):
        if not any(path.is_relative_to(place) for place in kept):
            kept.append(path)
    return kept


def without(place: Path, hidden: Path) -> list[Path]:
    """The place, or its parts, so that the hidden folder is in none of them."""
    if place == hidden:
        return []
    if not hidden.is_relative_to(place):
        return [place]
    return [part for entry in place.iterdir() for part in without(entry, hidden)]
