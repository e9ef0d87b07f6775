"""A worker process for a reward that may hang, die or evaluate what a model wrote."""

from __future__ import annotations

import json
import os
import pickle
import select
import subprocess
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import spawn
from typing import Any

from rlsgd.core.problems import Problem
from rlsgd.rewards.base import BatchReward, Grade, Reward, finite_number
from rlsgd.rewards.sandbox.session import SandboxError
from rlsgd.rewards.sandbox.walls import WALLS, NoWall, Wall

Item = tuple[str, Problem]
START_UP_SECONDS = 120.0
MEMORY_MB = 1024  # address space of a process that grades, libraries included
_MOST_REASON = 1000  # characters of a failure


class WorkerDied(Exception):
    """The worker said nothing more."""


class IsolatedWorker:
    """One process that grades lists of items with one reward, and is replaced when it must be.

    The process stays clean and grades in forks of itself (`worker.py`), behind the first of
    `WALLS` that works here, if the reward is `walled`.

    Args:
        reward: verifier to run there; it must be picklable.
        timeout_seconds: limit for each item. Start-up and imports have `START_UP_SECONDS`.
        allow_unwalled: run a walled reward with the trainer's rights where no wall works.
        walls: kinds to try, in this order.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        timeout_seconds: float,
        allow_unwalled: bool = False,
        walls: Sequence[type[Wall]] = WALLS,
    ) -> None:
        self.reward = reward
        self.name, self.part_names = reward.name, reward.part_names
        self.at_once = isinstance(reward, BatchReward)
        self.timeout_seconds = timeout_seconds
        self.allow_unwalled = allow_unwalled
        try:
            self.payload = pickle.dumps(reward)
        except Exception as error:
            raise ValueError(
                f"--data.reward: {self.name} runs in a worker process, so it must be picklable: "
                f"{error}"
            ) from error
        self._walls = list(walls) if reward.walled else []
        self._reasons: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None  # the process ends when it is closed, whatever it is doing
        self._is_ready = False
        self._start()

    @property
    def wall(self) -> Wall:
        """What the process is behind, or would be."""
        return self._walls[0]() if self._walls else NoWall()

    def wait_until_ready(self) -> None:
        """Block until the worker has built the reward and shut its wall.

        Raises:
            ValueError: if it could not build the reward, or no wall works here.
        """
        if self._is_ready:
            return
        while True:
            if self._process is None:
                self._start()
            reason = self._first_words()
            if reason is None:
                self._is_ready = True
                break
            self.close()
            self._reasons.append(f"{self.wall.name} does not work here ({reason})")
            self._walls.pop(0)
            if not self._walls and not self.allow_unwalled:
                raise ValueError(
                    f"--data.reward: {self.name} may evaluate what a model wrote and needs a wall: "
                    f"{', '.join(self._reasons)}. Install bubblewrap (`sudo apt-get install "
                    "bubblewrap`), or, where nothing can be lost, "
                    "--data.allow_unwalled_reward true"
                )
            warnings.warn(f"{self._reasons[-1]}; {self.name} has {self.wall.name}", stacklevel=2)
        for lack in self.wall.shortcomings:
            warnings.warn(lack, stacklevel=2)

    def grade(self, items: list[Item]) -> list[Grade]:
        """Grade a list in one round trip; only the offender fails."""
        grades: list[Grade] = []
        while len(grades) < len(items):
            self.wait_until_ready()
            try:
                rest = items[len(grades) :]
                self._write(len(rest).to_bytes(8, "big") + pickle.dumps(rest))
                while len(grades) < len(items):
                    # The worker keeps the time of an item; this is for its own death.
                    patience = self.timeout_seconds * (len(items) if self.at_once else 4)
                    message = self._read(patience + START_UP_SECONDS)
                    said = [self._checked(as_json(line)) for line in message.split(b"\n")]
                    grades += said[: len(items) - len(grades)]
            except (WorkerDied, OSError) as error:
                self.close()
                grades.append(Grade(failure=f"worker died: {error}"))
        return grades

    def close(self) -> None:
        """Stop the process. It starts anew if it is asked again."""
        process, self._process, self._is_ready = self._process, None, False
        if process is None:
            return self._close_pipe()
        assert process.stdin and process.stdout and process.stderr
        with suppress(OSError):
            process.stdin.close()  # upon which it ends its fork, and itself
        for end in (self._close_pipe, process.kill):
            try:
                process.wait(timeout=5)  # `bwrap` ends after what it started
                break
            except subprocess.TimeoutExpired:
                end()
        process.wait()
        self._close_pipe()
        process.stdout.close()
        process.stderr.close()

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)

    def _start(self) -> None:
        in_main = b"__main__" in self.payload
        # Only a reward of the main script needs it there, since torch may come with it.
        known = spawn.get_preparation_data("reward") if in_main else {}
        keys = ("init_main_from_name", "init_main_from_path")
        preparation = {key: known[key] for key in keys if key in known}
        more = list(preparation.values())[:1] if "init_main_from_path" in preparation else []
        reader, self._pipe = os.pipe()
        try:
            self._process = self.wall.start(reader)
            order = {
                "preparation": preparation,
                "reward": self.payload,
                "wall": self.wall.plan(more),
                "timeout_seconds": self.timeout_seconds,
                "memory_bytes": MEMORY_MB * 2**20,
            }
            threading.Thread(target=self._write_order, args=(pickle.dumps(order),)).start()
        except (OSError, SandboxError) as error:
            self.close()
            self._reason = str(error)
        finally:
            os.close(reader)

    def _write_order(self, order: bytes) -> None:
        with suppress(OSError, ValueError):
            self._write(order)

    def _first_words(self) -> str | None:
        """Why there is no wall; None if all is well."""
        if self._process is None:
            return self._reason
        said = None
        try:
            said = as_json(self._read(START_UP_SECONDS))
            if said == "started":
                said = as_json(self._read(START_UP_SECONDS))
        except WorkerDied as error:
            words = self._last_words()
            if said != "started":
                return words
            said = f"{error} ({words})"  # the reward is to blame, not the wall
        if said == "ready":
            return None
        if isinstance(said, dict) and "no wall" in said:
            return said["no wall"]
        self.close()
        reason = said.get("not built", said) if isinstance(said, dict) else said
        raise ValueError(
            f"--data.reward: {self.name} could not be started in its worker process: {reason}"
        )

    def _last_words(self) -> str:
        assert self._process is not None and self._process.stderr is not None
        self._close_pipe()  # else one that hangs would keep standard error open
        self._process.kill()
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return " / ".join(lines[-2:])[:500] or "it ended without a word"

    def _write(self, message: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(len(message).to_bytes(8, "big") + message)
        self._process.stdin.flush()

    def _read(self, seconds: float) -> bytes:
        """The next message; raises `WorkerDied` if there is none."""
        size = int.from_bytes(self._read_exactly(8, seconds), "big")
        return self._read_exactly(size, seconds)

    def _read_exactly(self, size: int, seconds: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        channel, pieces = self._process.stdout.fileno(), bytearray()
        deadline = time.monotonic() + seconds
        while len(pieces) < size:
            if not select.select([channel], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise WorkerDied(f"no word for {seconds:g} s")
            piece = os.read(channel, min(size - len(pieces), 2**20))
            if not piece:
                raise WorkerDied("its channel is closed")
            pieces += piece
        return bytes(pieces)

    def _checked(self, reply: Any) -> Grade:
        """A grade of plain, finite values; what a fork wrote is not believed before."""
        try:
            failure, answer = reply.get("failure"), reply.get("answer")
            if failure is not None:
                return Grade(failure=str(failure)[:_MOST_REASON])
            parts = {name: finite_number(reply["parts"][name], name) for name in reply["parts"]}
            if list(parts) != self.part_names or not isinstance(answer, (str, type(None))):
                raise ValueError("other parts than announced")
            return Grade(finite_number(reply["score"], self.name), parts, answer=answer)
        except Exception as error:
            return Grade(failure=f"the worker's fork wrote no grade: {error!r}"[:_MOST_REASON])


def as_json(line: bytes) -> Any:
    """What a line holds; None where it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
