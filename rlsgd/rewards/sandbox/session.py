"""One started process in a sandbox: bytes in, bytes out, and an end that always comes."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress

from rlsgd.rewards.sandbox.inside import READY

START_UP_SECONDS = 30.0


class SandboxError(RuntimeError):
    """The sandbox could not be set up, so nothing was learnt about the program."""


class Session:
    """Read and write until the process ends, its time is over or its output is used up.

    The end looks alike whatever caused it: reading gives less, writing raises `BrokenPipeError`.

    Args:
        process: process with pipes on its three channels.
        stop: ends the process and all that it started; may be called more than once.
        output_bytes: the most that is read.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        stop: Callable[[], None],
        output_bytes: int,
    ) -> None:
        assert process.stdin and process.stdout and process.stderr
        self._process = process
        self._input, self._output, self._errors = process.stdin, process.stdout, process.stderr
        self._stop = stop
        self._left = output_bytes
        self._stop_after(START_UP_SECONDS)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._stop()
        self._process.wait()
        for pipe in (self._input, self._output, self._errors):
            with suppress(OSError):  # what was not yet written has no reader any more
                pipe.close()

    def _stop_after(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._stop)
        self._timer.daemon = True
        self._timer.start()

    def wait_until_ready(self, seconds: float) -> None:
        """Block until the limits stand; from then on the program has `seconds` of wall clock.

        The time that starting takes is not the program's, so a busy machine changes no score.

        Raises:
            SandboxError: with the last words of the command, if that does not happen.
        """
        said: list[str] = []
        for line in self._errors:
            if line == READY:
                self._timer.cancel()
                self._stop_after(max(seconds, 0))
                return
            said.append(line.decode(errors="replace").strip())
        reason = " / ".join(said[-3:])[:500] or "it did not start in time"
        raise SandboxError(reason)

    def write(self, data: bytes) -> None:
        """Hand over all of the data."""
        self._input.write(data)
        self._input.flush()

    def feed(self, data: bytes, *, close: bool) -> None:
        """Hand over the data from a thread, whether it is read or not; then close, or flush."""
        threading.Thread(target=self._feed, args=(data, close), daemon=True).start()

    def _feed(self, data: bytes, close: bool) -> None:
        # The program may end without reading all of it, and the session be closed meanwhile.
        with suppress(OSError, ValueError):
            self._input.write(data)
            self._input.close() if close else self._input.flush()

    @property
    def is_over_limit(self) -> bool:
        """Whether it said more than is read."""
        return self._left < 0

    def read_line(self) -> bytes:
        """The next line without its line break; empty at the end, or past the output limit."""
        line = self._output.readline(self._left + 1)
        self._left -= len(line)
        return line[:-1] if line.endswith(b"\n") and self._left >= 0 else b""

    def read_all(self) -> bytes | None:
        """Everything up to the end; None if it is more than the output limit."""
        output = self._output.read(self._left + 1)
        return output if len(output) <= self._left else None

    def exit_code(self) -> int:
        """Wait for the end, which is 0 for a program that ended well and in time."""
        return self._process.wait()
