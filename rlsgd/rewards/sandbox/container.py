"""Generated programs in a container, for machines that have Docker or Podman and no bubblewrap."""

from __future__ import annotations

import os
import shutil
import subprocess

from rlsgd.rewards.sandbox.base import Sandbox, start_piped


class Container(Sandbox):
    """One container for each program: no network, a read-only root and a small `/tmp`.

    A container takes some half a second to start, ten times as long as `Bubblewrap`. A program may
    start a few processes here; memory and their number are limited for all of them together.

    Args:
        image: an image with `python3` 3.11 or newer; it must be on the machine already.
        engine: `docker` or `podman`.
        options: more options of `engine run`, such as `--runtime=runsc` for gVisor.
        cpu_seconds: the most processor time of one process.
        memory_mb: the most memory of one program.
        scratch_mb: the size of `/tmp`, the one place where a program may write.
        output_kb: most that a process may print; more ends it.
    """

    def __init__(
        self,
        image: str,
        engine: str = "docker",
        options: list[str] | None = None,
        cpu_seconds: int = 4,
        memory_mb: int = 512,
        scratch_mb: int = 16,
        output_kb: int = 1024,
    ) -> None:
        super().__init__(cpu_seconds, memory_mb, scratch_mb, output_kb)
        if shutil.which(engine) is None:
            raise ValueError(f"--data.reward.sandbox.engine: there is no command {engine!r}")
        self.image = image
        self.engine = engine
        self.options = list(options or [])

    def launch(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        command = [
            *(self.engine, "run", "--name", name, "--rm", "--interactive", "--pull", "never"),
            *("--network", "none", "--read-only", "--workdir", "/tmp"),
            *("--tmpfs", f"/tmp:rw,size={self.scratch_mb}m,mode=1777", "--shm-size", "1m"),
            *("--memory", f"{self.memory_mb}m", "--memory-swap", f"{self.memory_mb}m"),
            *("--pids-limit", "32", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--user", "65534:65534", *self.options, self.image, "python3", *arguments),
        ]
        # The engine's client needs to find its service; nothing of this reaches the program.
        return start_piped(command, env=dict(os.environ))

    def stop(self, process: subprocess.Popen[bytes], name: str) -> None:
        # The client's death would leave the container running.
        if process.poll() is None:
            subprocess.run([self.engine, "kill", name], capture_output=True, check=False)
            process.kill()
