"""Where generated programs run: behind bubblewrap, in a process that can only answer.

A kind of sandbox differs in the command that is put before Python, and in how it is stopped. Limits
of processor time, memory and file size are set inside, by `sandbox_inside.py`.
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
from rlsgd.rewards.sandbox.session import SandboxError, Session

PYTHON_FLAGS = ("-I", "-S", "-X", "utf8", "-c")
LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")


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

    @abstractmethod
    def launch(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        """Start Python with these arguments and pipes on its three channels."""

    def stop(self, process: subprocess.Popen[bytes], name: str) -> None:
        """End the process and all that it started; harmless where it has ended already."""
        process.kill()

    def start(self, role: str, payload: bytes, standard_input: bytes | None = None) -> Session:
        """Start a role of `sandbox_inside.py`.

        Standard input ends after the one given; with None it stays open, to be written to.
        """
        limits = (self.cpu_seconds, self.memory_mb * 2**20, self.scratch_mb * 2**20)
        numbers = [str(number) for number in (len(payload), *limits)]
        name = f"rlsgd-{os.getpid()}-{os.urandom(8).hex()}"
        process = self.launch(name, [*PYTHON_FLAGS, _inside(), role, *numbers])
        session = Session(
            process,
            stop=lambda: self.stop(process, name),
            output_bytes=self.output_kb * 1024,
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
                session.wait_until_ready(seconds=10)
                output = session.read_all()
        except OSError as error:
            raise SandboxError(str(error)) from None
        if output != b"1\n":
            raise SandboxError(f"a program that prints 1 printed {output!r}")


class Bubblewrap(Sandbox):
    """Unprivileged namespaces made by `bwrap`, and a filter of system calls.

    A program sees the system's libraries and this Python's own files, read-only, and an empty
    `/tmp`: no home folder, no environment, no network, no other process. It is one process; it may
    start threads. Needs Linux on x86_64 or aarch64.
    """

    def launch(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        command, steps = _bwrap(self.scratch_mb), seccomp_filter()
        filter_end, own_end = os.pipe()
        try:
            os.write(own_end, steps)
            os.close(own_end)
            command += ["--seccomp", str(filter_end), "--", _python_inside(), *arguments]
            return start_piped(command, pass_fds=(filter_end,))
        finally:
            os.close(filter_end)


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


def _python_inside() -> str:
    executable, prefix = map(os.path.realpath, (sys.executable, sys.base_prefix))
    if not Path(executable).is_relative_to(prefix):
        raise SandboxError(f"Python's command {executable} is not in Python's folder {prefix}")
    return str(Path("/python", Path(executable).relative_to(prefix)))


def _bwrap(scratch_mb: int) -> list[str]:
    """The command up to the filter: a new root folder with nothing of the host's to write to."""
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError("there is no command `bwrap`")
    mounts = ["--ro-bind", os.path.realpath(sys.base_prefix), "/python"]
    for library in map(Path, LIBRARIES):
        if library.is_symlink():
            mounts += ["--symlink", os.readlink(library), str(library)]
        elif library.is_dir():
            mounts += ["--ro-bind", str(library), str(library)]
    return [
        *(found, "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"),
        *("--cap-drop", "ALL", "--new-session", "--die-with-parent", "--hostname", "sandbox"),
        *mounts,
        *("--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--size", str(scratch_mb * 2**20), "--tmpfs", "/tmp", "--chdir", "/tmp"),
        *("--remount-ro", "/", "--setenv", "LD_LIBRARY_PATH", "/python/lib"),
    ]


def start_piped(
    command: list[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, with pipes on its three channels.

    Its environment is empty unless one is given.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env or {},
        cwd=cwd,
        pass_fds=pass_fds,
        start_new_session=True,
    )
