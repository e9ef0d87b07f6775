"""Generated programs under Landlock, for machines on which bubblewrap cannot make namespaces."""

from __future__ import annotations

import ctypes
import os
import subprocess

from rlsgd.rewards.sandbox.base import Sandbox, confined, start_piped
from rlsgd.rewards.sandbox.python import private_python

_SCOPING = 6  # the version that keeps signals and abstract sockets in, from Linux 6.12 on


class Landlock(Sandbox):
    """No namespaces: Landlock for files, and a filter of system calls for everything else.

    It needs no privileges and no program besides Python, but Linux 6.2 or newer with Landlock, on
    x86_64 or aarch64. A program reads a copy of Python's standard library and writes nowhere, so
    `scratch_mb` does not matter. It is one process without network, that can neither see nor signal
    another, of an unprivileged user where the trainer is root. A second process ends it and all
    that it might have started when the trainer asks, or ends. What `Bubblewrap` hides and this does
    not: whether a path exists, with its size and times, and the machine's users and name.
    """

    @property
    def shortcomings(self) -> list[str]:
        return landlock_shortcomings()

    def launch(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        python = private_python()
        readable = (str(python),)
        command = [str(python / "bin/python")]
        command += confined(arguments, readable=readable, parent=os.getpid())
        env = {"LD_LIBRARY_PATH": str(python / "libraries")}
        return start_piped(command, env=env, cwd="/", unprivileged=True)

    def stop(self, process: subprocess.Popen[bytes], name: str) -> None:
        process.terminate()  # the supervisor ends the program, and whatever it started, and itself


def landlock_shortcomings() -> list[str]:
    """What this kernel's Landlock cannot keep in, in words."""
    if landlock_version() >= _SCOPING:
        return []
    return ["Landlock here keeps no signals and sockets in (Linux 6.12 does); the filter has to"]


def landlock_version() -> int:
    """The kernel's version of Landlock; -1 where it has none."""
    create_ruleset, ask_version = 444, 1
    return ctypes.CDLL(None).syscall(create_ruleset, None, ctypes.c_size_t(0), ask_version)
