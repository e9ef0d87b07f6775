"""Generated programs under Landlock, for machines on which bubblewrap cannot make namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from rlsgd.rewards.sandbox.base import LIBRARIES, PYTHON_FLAGS, Sandbox, start_piped
from rlsgd.rewards.sandbox.filter import seccomp_filter


class Landlock(Sandbox):
    """No namespaces: Landlock for files, and a filter of system calls for everything else.

    It needs no privileges and no program besides Python, but Linux 6.2 or newer with Landlock, on
    x86_64 or aarch64. A program reads the system's libraries and this Python's own files and
    writes nowhere, so `scratch_mb` does not matter. It is one process without network, that can
    neither see nor signal another. What `Bubblewrap` hides and this does not: whether a path
    exists, with its size and times, and the machine's users and name.
    """

    def launch(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        at = len(PYTHON_FLAGS)
        confinement = [_confine(), seccomp_filter().hex(), "\n".join(_readable())]
        command = [*arguments[:at], *confinement, *arguments[at:]]
        return start_piped([os.path.realpath(sys.executable), *command], cwd="/")


@cache
def _confine() -> str:
    return Path(__file__).with_name("confine.py").read_text()


def _readable() -> tuple[str, ...]:
    return (os.path.realpath(sys.base_prefix), *LIBRARIES, "/etc/ld.so.cache")
