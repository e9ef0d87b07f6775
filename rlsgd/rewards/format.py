"""Does the completion have the form that was asked for?"""

from __future__ import annotations

import re

from rlsgd.core.problems import Problem
from rlsgd.rewards.base import Reward


class Format(Reward):
    """1 if the whole completion matches the pattern, else 0; `.` also matches a line break.

    It is isolated: a pattern such as `(a+)+` needs exponential time on some completions, and a
    thread cannot interrupt Python's matcher, which keeps the interpreter lock.

    Args:
        pattern: a Python regular expression for the whole completion, for example
            `<think>.*</think>\\s*<answer>.*</answer>`.
    """

    isolated = True

    def __init__(self, pattern: str) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ValueError(
                f"--data.reward.pattern is not a regular expression: {error} in {pattern!r}"
            ) from None

    def score(self, completion: str, problem: Problem) -> float:
        return float(self.pattern.fullmatch(completion) is not None)
