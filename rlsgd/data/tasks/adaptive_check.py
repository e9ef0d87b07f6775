"""Whether a level can be trained on: one problem of it, and the score of the answer on record."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rlsgd.data.tasks.reasoning_gym import ReasoningGym
from rlsgd.problems import Problem
from rlsgd.rewards.reasoning_gym import ReasoningGymScore

MOST_SECONDS = 20.0  # of processor time; the slowest level that works takes 7


def check_level(gym: ReasoningGym) -> None:
    """Make one problem and score it.

    Raises:
        ValueError: it cannot be made, takes too long, or its own answer does not get full marks.
    """
    try:
        with _processor_limit(MOST_SECONDS):
            [problem] = gym.train_problems(seed=0, epoch=0, count=1)
            score = _score(problem)
    except _TooSlow:
        raise ValueError(
            f"--data.task.config: {gym.name} took more than {MOST_SECONDS:g} seconds of processor "
            "time for one problem"
        ) from None
    if not math.isfinite(score) or (problem.answer and score != 1):
        raise ValueError(
            f"--data.task.config: {gym.name} gives its own answer {problem.answer!r} the score "
            f"{score:g}, not 1"
        )


def _score(problem: Problem) -> float:
    # a few data sets have no answer on record: any valid solution gets full marks
    answer = problem.answer or "x"
    try:
        return ReasoningGymScore("whole").score(answer, problem)
    except Exception as error:
        raise ValueError(
            f"--data.task.config: {problem.metadata['source_dataset']} could not score the answer "
            f"{answer!r}: {type(error).__name__}: {error}"
        ) from error


class _TooSlow(BaseException):
    """Not an Exception: generators try again after one."""


@contextmanager
def _processor_limit(seconds: float) -> Iterator[None]:
    """Raise `_TooSlow` in the main thread when the process has computed for this long.

    Wall clock would refuse a level on a busy machine.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
