"""Where generated programs run: behind bubblewrap, in a process that can only answer.

A kind of sandbox differs in the command that is put before Python, and in how it is stopped. What
the command leaves open is shut inside by `confine.py`; the limits of processor time, memory and
file size are set by `inside.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from rlsgd.rewards.sandbox.filter import seccomp_filter
from rlsgd.rewards.sandbox.python import loader_name, private_python
from rlsgd.rewards.sandbox.session import START_UP_SECONDS, SandboxError, Session

PYTHON_FLAGS = ("-I", "-S", "-X", "utf8", "-c")
NOBODY = 65534  # whom programs run as where the trainer is root
SCRATCH_FILES = 1024  # each empty file costs the kernel a kilobyte that no other limit counts


class Sandbox(ABC):
    """A place for one process of Python at a time, with limits.

    Args:
        cpu_seconds: the most processor time of one process.
        memory_mb: the most address space of one process, the interpreter's some 20 MB included.
        scratch_mb: the size of `/tmp`, the one place where a program may write.
        output_kb: most that a process may print; more ends it.
    """

    def __init__(
        self,
        cpu_seconds: int = 4,
        memory_mb: int = 512,
        scratch_mb: int = 16,
        output_kb: int = 1024,
    ) -> None:
        given = {
            "cpu_seconds": cpu_seconds,
            "memory_mb": memory_mb,
            "scratch_mb": scratch_mb,
            "output_kb": output_kb,
        }
        for flag, value in given.items():
            if value < 1:
                raise ValueError(f"--data.reward.sandbox.{flag} must be at least 1; got {value}")
        self.cpu_seconds = cpu_seconds
        self.memory_mb = memory_mb
        self.scratch_mb = scratch_mb
        self.output_kb = output_kb

    @property
    def shortcomings(self) -> list[str]:
        """What this machine lacks of what the sandbox can promise, in words."""
        return []

    @abstractmethod
    def launch(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        """Start Python with these arguments and pipes on its three channels."""

    def stop(self, process: subprocess.Popen[bytes], name: str) -> None:
        """End the process and all that it started; harmless where it has ended already."""
        process.kill()

    def start(
        self,
        role: str,
        payload: bytes,
        standard_input: bytes | None = None,
        *,
        output_kb: int | None = None,
    ) -> Session:
        """Start a role of `inside.py`.

        Standard input ends after the one given; with None it stays open, to be written to. Messages
        may have a limit of their own instead of the output's.
        """
        limits = (self.cpu_seconds, self.memory_mb * 2**20, self.scratch_mb * 2**20)
        numbers = [str(number) for number in (len(payload), *limits)]
        name = f"rlsgd-{os.getpid()}-{os.urandom(8).hex()}"
        process = self.launch(name, [*PYTHON_FLAGS, _inside(), role, *numbers])
        session = Session(
            process,
            stop=lambda: self.stop(process, name),
            output_bytes=(output_kb or self.output_kb) * 1024,
        )
        session.feed(payload + (standard_input or b""), close=standard_input is not None)
        return session

    def check(self) -> None:
        """Run a program that prints 1.

        Raises:
            SandboxError: if it does not, with the reason.
        """
        try:
            with self.start("script", b"print(1)", standard_input=b"") as session:
                session.wait_until_ready(START_UP_SECONDS)
                output = session.read_all()
        except OSError as error:
            raise SandboxError(str(error)) from None
        if output != b"1\n":
            raise SandboxError(f"a program that prints 1 printed {output!r}")


class Bubblewrap(Sandbox):
    """Unprivileged namespaces made by `bwrap`, and a filter of system calls.

    A program sees a copy of Python's standard library, read-only, and an empty `/tmp` of a thousand
    files at most: no home folder, no `/proc` and `/sys`, no environment, no network, no other
    process. It is one process of an unprivileged user, also where the trainer is root; it may start
    threads. Needs Linux on x86_64 or aarch64.
    """

    def launch(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        scratch = (self.scratch_mb * 2**20, SCRATCH_FILES)
        command = [*_bwrap(private_python()), "--", "/python/bin/python"]
        return start_piped([*command, *confined(arguments, scratch=scratch)], unprivileged=True)


class Unsandboxed(Sandbox):
    """No sandbox: a program can do what you can do. The limits are all that holds it.

    For machines where neither works, and nothing is lost if a program deletes your files.
    """

    def launch(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        folder = Path(tempfile.gettempdir(), name)
        folder.mkdir(mode=0o700)
        return start_piped([sys.executable, *arguments], cwd=folder)

    def stop(self, process: subprocess.Popen[bytes], name: str) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(Path(tempfile.gettempdir(), name), ignore_errors=True)


@cache
def _inside() -> str:
    return Path(__file__).with_name("inside.py").read_text()


@cache
def _confine() -> str:
    return Path(__file__).with_name("confine.py").read_text()


def confined(
    arguments: list[str],
    *,
    scratch: tuple[int, int] = (0, 0),
    readable: tuple[str, ...] = (),
    parent: int = 0,
) -> list[str]:
    """Python's arguments with `confine.py` before the text that they run."""
    at = len(PYTHON_FLAGS)
    plan = ";".join([seccomp_filter().hex(), str(parent), *map(str, scratch), *readable])
    return [*arguments[:at], _confine(), plan, *arguments[at:]]


def _bwrap(python: Path) -> list[str]:
    """The command up to Python: a new root folder with nothing of the host's to write to."""
    loader = loader_name(python)
    devices = ("null", "zero", "full", "random", "urandom")
    return [
        *(find_bwrap(), "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"),
        # to mount `/tmp` with a limit of files; given up before the program's text is read
        *("--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"),
        *("--new-session", "--die-with-parent", "--hostname", "sandbox"),
        *("--ro-bind", str(python), "/python"),
        *("--symlink", f"/python/libraries/{Path(loader).name}", loader),
        *(word for d in devices for word in ("--dev-bind", f"/dev/{d}", f"/dev/{d}")),
        *("--dir", "/tmp", "--remount-ro", "/", "--chdir", "/"),
        *("--setenv", "LD_LIBRARY_PATH", "/python/libraries"),
    ]


def find_bwrap() -> str:
    """The command's path; raises `SandboxError` if there is none."""
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError("there is no command `bwrap`")
    return found


def start_piped(
    command: list[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    unprivileged: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, with pipes on its three channels.

    Its environment is empty unless one is given. `unprivileged` is for a command that must not run
    as root: a root user starts it as `nobody`.

    Raises:
        SandboxError: if root cannot become another user here.
    """
    user = NOBODY if unprivileged and os.geteuid() == 0 else None
    # A command below a folder of root's is reached by a descriptor, which is closed inside.
    opened = None if user is None else os.open(command[0], os.O_RDONLY)
    try:
        return subprocess.Popen(
            command,
            executable=None if opened is None else f"/proc/self/fd/{opened}",
            pass_fds=() if opened is None else (opened,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env or {},
            cwd=cwd,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            start_new_session=True,
        )
    except (PermissionError, subprocess.SubprocessError) as error:
        if user is None:
            raise
        raise SandboxError(f"root cannot start programs as user {user} here: {error}") from None
    finally:
        if opened is not None:
            os.close(opened)
