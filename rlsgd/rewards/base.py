"""What a reward is, and the one place where a verifier's word is checked before it is believed."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real

from rlsgd.core.problems import Problem

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Reward(ABC):
    """Scores one completion of one problem. A subclass is a plain picklable class with `score`.

    Attributes:
        isolated: True runs the reward in a worker process, where it can be stopped. False is for
            code that cannot hang, whatever a model writes.
        full_marks: the score of a correct answer.
    """

    isolated: bool = True
    full_marks: float = 1.0

    @property
    def name(self) -> str:
        """How logs call this reward: the class name in snake_case."""
        return _WORD_START.sub("_", type(self).__name__).lower()

    @property
    def part_names(self) -> list[str]:
        """The keys of `parts`, in order."""
        return [self.name]

    @abstractmethod
    def score(self, completion: str, problem: Problem) -> float:
        """The reward. May raise: the scorer counts it as a failure and says why."""

    def parts(self, completion: str, problem: Problem) -> dict[str, float]:
        """Every named component of the reward, for the logs."""
        return {self.name: self.score(completion, problem)}

    def grade(self, completion: str, problem: Problem) -> tuple[float, dict[str, float]]:
        """`score` and `parts` at once; override it where the two share work."""
        score = self.score(completion, problem)
        if type(self).parts is Reward.parts:
            return score, {self.name: score}
        return score, self.parts(completion, problem)

    def answer_of(self, completion: str) -> str | None:
        """The answer that a completion gives, for majority votes: equal texts are one answer.

        None is for no answer. Without a way to find it, an answer is the whole completion.
        """
        return completion.strip()

    def prepare(self) -> None:
        """Import and load what scoring needs. Runs before any completion's time does."""
        return None


@dataclass(frozen=True)
class Grade:
    """One checked verdict: finite numbers, or the reason why there are none."""

    score: float = 0.0
    parts: dict[str, float] | None = None
    failure: str | None = None
    answer: str | None = None


def grade_safely(
    reward: Reward,
    completion: str,
    problem: Problem,
    *,
    caught: type[BaseException] = Exception,
) -> Grade:
    """Grade one completion; anything but finite numbers becomes a failure with its reason."""
    try:
        score, parts = reward.grade(completion, problem)
        score = finite_number(score, reward.name)
        if list(parts) != reward.part_names:
            raise ValueError(
                f"{reward.name} has part_names {reward.part_names}, but returned {list(parts)}"
            )
        parts = {key: finite_number(value, key) for key, value in parts.items()}
        return Grade(score, parts, answer=reward.answer_of(completion))
    except caught as error:
        return Grade(failure=f"{type(error).__name__}: {error}")


def finite_number(value: object, name: str) -> float:
    """The value as a float, if it is a finite real number; else TypeError or ValueError."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} returned {value!r:.80}, not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} returned {number}, not a finite number")
    return number
