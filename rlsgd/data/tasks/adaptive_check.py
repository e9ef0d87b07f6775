"""Whether a level can be trained on: one problem of it, and the score of the answer on record."""

from __future__ import annotations

import math

from rlsgd.core.problems import Problem
from rlsgd.data.tasks.processor_limit import TooSlow, processor_limit
from rlsgd.data.tasks.reasoning_gym import ReasoningGym
from rlsgd.rewards.reasoning_gym import ReasoningGymScore


def check_level(gym: ReasoningGym) -> None:
    """Make one problem and score it.

    Raises:
        ValueError: it cannot be made, takes too long, or its own answer does not get full marks.
    """
    [problem] = gym.train_problems(seed=0, epoch=0, count=1)
    score = _score(problem, gym.name)
    if not math.isfinite(score) or (problem.answer and score != 1):
        raise ValueError(
            f"--data.task.config: {gym.name} gives its own answer {problem.answer!r} the score "
            f"{score:g}, not 1"
        )


def _score(problem: Problem, name: str) -> float:
    # a few data sets have no answer on record: any valid solution gets full marks
    answer = problem.answer or "x"
    try:
        with processor_limit():
            return ReasoningGymScore("whole").score(answer, problem)
    except (Exception, TooSlow) as error:
        raise ValueError(
            f"--data.task.config: {name} could not score the answer {answer!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
