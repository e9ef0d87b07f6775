"""One fork of a clean worker: it grades items under a filter of system calls, and is then ended."""

from __future__ import annotations

import json
import os
import pickle
import resource
import select
import signal
import time
from contextlib import suppress
from typing import Any

from rlsgd.rewards import guard
from rlsgd.rewards.base import BatchReward, Reward, grade_batch_safely, grade_safely
from rlsgd.rewards.sandbox.confine import end_with, filter_calls

MOST_BYTES = 8 * 2**20  # of one grade, which holds the answer: a part of the completion
_ITEMS, _GRADES, _OTHERS = 3, 4, 5  # the channels of a fork, besides those that lead nowhere
_TOUCHED = b"!"  # before a line of a fork in which a text was refused
_MOST_FILES = 64
MOST_LINES, _SILENT_SECONDS = 128, 0.05  # a fork says so many grades at once, or after so long


class TrainerIsGone(Exception):
    """The channel of requests is closed."""


class Fork:
    """A child of this process that grades lists of items until it is ended.

    Args:
        reward: verifier that grades the items.
        order: the `wall`, and `memory_bytes`, the most address space.
    """

    def __init__(self, reward: Reward, order: dict[str, Any]) -> None:
        self.is_fresh = True
        self.is_touched = False
        self._rest = bytearray()
        items_end, self._items = os.pipe()
        self._grades, grades_end = os.pipe()
        parent = os.getpid()
        self._process = os.fork()
        if self._process == 0:
            try:
                _serve(reward, order, parent, items_end, grades_end)
            finally:
                os._exit(1)
        os.close(items_end)
        os.close(grades_end)

    def send(self, items: bytes) -> None:
        """Hand over a pickled list of items; there is one line for each of them."""
        with suppress(BrokenPipeError):  # it has ended, as the next line will tell
            write_message(self._items, items)

    def next_lines(self, timeout_seconds: float, requests: int) -> list[bytes] | str:
        """The next grades as JSON, or why there are none.

        Raises:
            TrainerIsGone: nobody waits for it any more.
        """
        # The first of the items that it has not spoken of may have begun a little later.
        deadline = time.monotonic() + _SILENT_SECONDS + timeout_seconds
        while (end := self._rest.rfind(b"\n")) < 0:
            left = deadline - time.monotonic()
            ready = select.select([self._grades, requests], [], [], max(left, 0))[0]
            if requests in ready:  # a request comes only after all replies: this is its end
                self.end()
                raise TrainerIsGone
            if not ready:
                return f"timeout: no score after {timeout_seconds:g} s"
            piece = os.read(self._grades, 2**20)
            self._rest += piece
            if not piece or len(self._rest) > MOST_BYTES:
                return f"worker died: exit code {self.end(patience_seconds=1.0)}"
        lines = bytes(self._rest[:end]).split(b"\n")
        del self._rest[: end + 1]
        self.is_fresh = False
        self.is_touched |= any(line.startswith(_TOUCHED) for line in lines)
        return [line.removeprefix(_TOUCHED) for line in lines]

    def end(self, patience_seconds: float = 0.0) -> int:
        """End it, after a while in which it may end by itself; the exit code, or minus a signal."""
        if self._process == 0:
            return 0
        deadline = time.monotonic() + patience_seconds
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, self._process, ended) is None and time.monotonic() < deadline:
            time.sleep(0.002)
        with suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        _, status = os.waitpid(self._process, 0)
        self._process = 0
        os.close(self._items)
        os.close(self._grades)
        return os.waitstatus_to_exitcode(status)


def _serve(reward: Reward, order: dict[str, Any], parent: int, items: int, grades: int) -> None:
    """In the fork: grade what arrives."""
    end_with(parent)
    for given, wanted in ((items, 900), (grades, 901)):
        os.dup2(given, wanted)
    os.closerange(_ITEMS, 900)
    os.dup2(900, _ITEMS)
    os.dup2(901, _GRADES)
    os.closerange(_OTHERS, 4096)
    memory = order["memory_bytes"]
    if "filter" in order["wall"]:
        for name, most in (
            *(
                ("AS", memory),
                ("FSIZE", order["wall"].get("file_bytes", 0)),
                ("NOFILE", _MOST_FILES),
                ("CORE", 0),
            ),
            *(("MEMLOCK", 0), ("MSGQUEUE", 0), ("SIGPENDING", 64)),
        ):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
        filter_calls(order["wall"]["filter"])
    else:  # a soft limit: the sandboxes that it starts set their own
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    is_first = True
    while (message := read_message(_ITEMS)) is not None:
        lines, said = [], time.monotonic()
        given = pickle.loads(message)
        if isinstance(reward, BatchReward):
            grades_of_all = grade_batch_safely(reward, *map(list, zip(*given, strict=True)))
            _say([json.dumps(vars(grade)).encode() for grade in grades_of_all])
            continue
        for number, (completion, problem) in enumerate(given, start=1):
            # A verifier may call sys.exit, or raise a BaseException of its own for a timeout.
            grade = grade_safely(reward, completion, problem, caught=BaseException)
            if not is_first and (grade.failure or "").startswith("MemoryError"):
                os._exit(1)  # earlier items may have taken the memory
            is_first = False
            lines += [(_TOUCHED if guard.refusals else b"") + json.dumps(vars(grade)).encode()]
            now = time.monotonic()
            if number == len(given) or now > said + _SILENT_SECONDS or len(lines) == MOST_LINES:
                _say(lines)
                lines, said = [], now


def _say(lines: list[bytes]) -> None:
    data = memoryview(b"\n".join([*lines, b""]))
    while data:
        data = data[os.write(_GRADES, data) :]


def read_message(channel: int) -> bytes | None:
    """The next message: 8 bytes of length, and as many bytes. None at the end."""
    size = _read_exactly(channel, 8)
    return None if size is None else _read_exactly(channel, int.from_bytes(size, "big"))


def write_message(channel: int, message: bytes) -> None:
    """Write what `read_message` reads."""
    data = memoryview(len(message).to_bytes(8, "big") + message)
    while data:
        data = data[os.write(channel, data) :]


def _read_exactly(channel: int, size: int) -> bytes | None:
    pieces = bytearray()
    while len(pieces) < size:
        piece = os.read(channel, min(size - len(pieces), 2**20))
        if not piece:
            return None
        pieces += piece
    return bytes(pieces)
