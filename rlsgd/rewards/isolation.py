"""A worker process for a reward that may hang or die, and that is stopped when it does."""

from __future__ import annotations

import pickle
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from functools import lru_cache
from importlib.machinery import ModuleSpec
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from pebble import ProcessExpired, ProcessPool

from rlsgd.core.problems import Problem
from rlsgd.rewards.base import BatchReward, Grade, Reward, grade_batch_safely, grade_safely

Item = tuple[str, Problem]
START_UP_SECONDS = 120.0
CHUNK_SECONDS = 1.0
_main_lock = threading.Lock()


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a spawned process from importing the parent's main script, and with it torch.

    multiprocessing leaves a main module called `*.__main__` alone, so it is called that for the
    moment in which the process starts.
    """
    main = sys.modules["__main__"]
    with _main_lock:
        spec = getattr(main, "__spec__", None)
        main.__spec__ = ModuleSpec("rlsgd.__main__", None)
        try:
            yield
        finally:
            main.__spec__ = spec


class _LeanProcess(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _without_main():
            return SpawnProcess._Popen(process_obj)  # pyright: ignore[reportAttributeAccessIssue]


class _LeanContext(SpawnContext):
    Process = _LeanProcess


@lru_cache(maxsize=1)
def _load(payload: bytes) -> Reward:
    reward = pickle.loads(payload)
    reward.prepare()
    return reward


def start(payload: bytes) -> None:
    """In the worker: build the reward and import what it needs."""
    _load(payload)


def grade_chunk(payload: bytes, items: list[Item], budget_seconds: float) -> list[Grade]:
    """In the worker: grade as many items, from the first, as can be begun within the budget.

    A reward of a whole batch grades all of them in its one call.
    """
    reward = _load(payload)
    if isinstance(reward, BatchReward):
        return grade_batch_safely(reward, *map(list, zip(*items, strict=True)))
    deadline = time.monotonic() + budget_seconds
    grades: list[Grade] = []
    for completion, problem in items:
        if grades and time.monotonic() > deadline:
            break
        # A verifier may call sys.exit, or raise a BaseException of its own for a timeout.
        grades.append(grade_safely(reward, completion, problem, caught=BaseException))
    return grades


class IsolatedWorker:
    """One process that grades lists of items with one reward, and is replaced when it must be.

    Args:
        reward: reward to run there; it must be picklable.
        timeout_seconds: limit of an item. Start-up and imports have `START_UP_SECONDS` beside it.
    """

    def __init__(self, reward: Reward, *, timeout_seconds: float) -> None:
        self.name = reward.name
        self.at_once = isinstance(reward, BatchReward)
        self.timeout_seconds = timeout_seconds
        try:
            self.payload = pickle.dumps(reward)
        except Exception as error:
            raise ValueError(
                f"--data.reward: {self.name} runs in a worker process, so it must be picklable: "
                f"{error}"
            ) from error
        # Only a reward that is defined in the main script needs that script in the worker.
        in_main = b"__main__" in self.payload
        self._context = SpawnContext() if in_main else _LeanContext()
        self._pool: ProcessPool | None = None
        self._start()

    def wait_until_ready(self) -> None:
        """Block until the worker has built the reward.

        Raises:
            ValueError: if it could not.
        """
        if self._pool is None:
            self._start()
        try:
            self._started.result(timeout=2 * START_UP_SECONDS)
        except Exception as error:
            self.close()
            raise ValueError(
                f"--data.reward: {self.name} could not be started in its worker process: "
                f"{type(error).__name__}: {error}"
            ) from error

    def grade(self, items: list[Item]) -> list[Grade]:
        """Grade a list in as few round trips as possible; only the offender fails."""
        if self.at_once and items:
            done = self._call(items, 0.0, self.timeout_seconds * len(items))
            return [Grade(failure=done)] * len(items) if isinstance(done, str) else done
        grades: list[Grade] = []
        while len(grades) < len(items):
            rest = items[len(grades) :]
            # The chunk begins no item after its budget, so this limit falls on no honest item.
            done = self._call(rest, CHUNK_SECONDS, CHUNK_SECONDS + self.timeout_seconds)
            if isinstance(done, str):
                return grades + [self._grade_alone(item) for item in rest]
            grades += done
        return grades

    def close(self) -> None:
        """Stop the process. It starts anew if it is asked again."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _grade_alone(self, item: Item) -> Grade:
        done = self._call([item], 0.0, self.timeout_seconds)
        return Grade(failure=done) if isinstance(done, str) else done[0]

    def _call(self, items: list[Item], budget: float, timeout: float) -> list[Grade] | str:
        """Grades from the worker, or why there are none. A worker that failed is replaced."""
        self.wait_until_ready()
        assert self._pool is not None
        try:
            args = (self.payload, items, budget)
            return self._pool.schedule(grade_chunk, args=args, timeout=timeout).result()
        except FutureTimeoutError:
            reason = f"timeout: no score after {timeout:g} s"
        except ProcessExpired as error:
            reason = f"worker died: exit code {error.exitcode}"
        except RuntimeError as error:  # the pool is broken: the worker was killed between two calls
            reason = f"worker died: {error}"
        self.close()
        return reason

    def _start(self) -> None:
        self._pool = ProcessPool(max_workers=1, context=self._context)
        args = (self.payload,)
        self._started = self._pool.schedule(start, args=args, timeout=START_UP_SECONDS)
