"""What a reward is, and the one place where a verifier's word is checked before it is believed."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from numbers import Real
from typing import Any, NamedTuple

from rlsgd.core.made_with import remembers_arguments
from rlsgd.core.problems import Problem
from rlsgd.rewards.extract import after_thinking

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Trial(NamedTuple):
    """A completion that must get full marks, or must not."""

    completion: str
    is_right: bool
    refusal: str  # begins with the flag, and says what is wrong where it is judged otherwise


@remembers_arguments
class Reward(ABC):
    """Scores one completion of one problem. A subclass is a plain picklable class with `score`.

    Attributes:
        isolated: True runs the reward in a worker process, where it can be stopped. False is for
            code that cannot hang, whatever a model writes.
        walled: True puts that process behind a wall: no file but code, no network, no environment,
            no other process. False is for a reward that builds its own (`PythonTests`), or that
            evaluates no text and needs what the wall takes.
        fork_each: True grades each completion in a fork of its own, so that a completion which is
            evaluated cannot change another's score. False is for code that evaluates no text.
        full_marks: the score of a correct answer.
        thinking_tags: what opens and closes a completion's thinking, as `--data.thinking_tags` has
            it; None where an answer may be anywhere.
    """

    isolated: bool = True
    walled: bool = True
    fork_each: bool = True
    full_marks: float = 1.0
    thinking_tags: tuple[str, str] | None = ("<think>", "</think>")

    @property
    def name(self) -> str:
        """How logs call this reward: the class name in snake_case."""
        return _snake_case(type(self).__name__)

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

    def answer_part(self, completion: str) -> str | None:
        """What follows the thinking, all of a completion without any; None where it was cut off.

        A reward that looks for an answer looks here, and scores 0 where there is nothing.
        """
        return after_thinking(completion, self.thinking_tags)

    def look_after(self, thinking_tags: tuple[str, str] | None) -> None:
        """Take over the setting of the data module."""
        self.thinking_tags = thinking_tags

    def check(self, problem: Problem) -> None:
        """Refuse a problem that lacks what scoring needs. Called with one before training.

        Raises:
            ValueError: names `--data.reward` and what is missing.
        """
        return None

    def source(self, problem: Problem) -> str:
        """Of problems of one source a few are tried; the verifier of another may be another."""
        return ""

    def trials(self, problem: Problem) -> list[Trial]:
        """Completions whose verdict is known beforehand; a wrong one stops the run at its start."""
        return []

    def prepare(self) -> None:
        """Import and load what scoring needs. Runs before any completion's time does.

        Behind a wall this is the last moment to read files other than installed code.
        """
        return None

    def expect(self, problem: Problem) -> None:
        """Load what this problem's completions need, once for all of them; they come later."""
        return None


class BatchReward(Reward):
    """Scores all completions of a rollout in one call, as a reward that compares them must."""

    @abstractmethod
    def score_batch(self, completions: list[str], problems: list[Problem]) -> Sequence[Any]:
        """One number for each completion."""

    def score(self, completion: str, problem: Problem) -> float:
        return self.score_batch([completion], [problem])[0]


@cache
def _snake_case(name: str) -> str:
    return _WORD_START.sub("_", name).lower()


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
    """The value as a float, if it is one finite real number; else TypeError or ValueError.

    Numbers of NumPy and torch (also arrays and tensors without dimensions) and Decimal are
    numbers.
    """
    number = value if type(value) is float else scalar(value)
    if type(number) is not float and not isinstance(number, (Real, Decimal)):
        raise TypeError(f"{name} returned {value!r:.80}, not a number")
    try:
        number = float(number)
    except (OverflowError, ValueError):
        number = math.nan if number != number else math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} returned {number}, not a finite number")
    return number


def scalar(value: Any) -> Any:
    """The Python value of an array or tensor without dimensions; all else as it is."""
    if hasattr(value, "item") and tuple(getattr(value, "shape", (0,))) == ():
        return value.item()
    return value


def grade_batch_safely(
    reward: BatchReward, completions: list[str], problems: list[Problem]
) -> list[Grade]:
    """Grade a list at once; each value that is no finite number is a failure of its completion."""
    try:
        values: Any = reward.score_batch(completions, problems)
        if hasattr(values, "tolist"):  # an array or a tensor
            values = values.tolist()
        if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
            raise TypeError(f"{reward.name} returned {values!r:.80}, not a list of numbers")
        if len(values) != len(completions):
            raise ValueError(
                f"{reward.name} returned {len(values)} rewards for {len(completions)} completions"
            )
    except BaseException as error:
        return [Grade(failure=f"{type(error).__name__}: {error}")] * len(completions)
    return [
        _grade_of(reward, value, completion)
        for value, completion in zip(values, completions, strict=True)
    ]


def _grade_of(reward: Reward, value: object, completion: str) -> Grade:
    try:
        score = finite_number(value, reward.name)
        return Grade(score, {reward.name: score}, answer=reward.answer_of(completion))
    except Exception as error:
        return Grade(failure=f"{type(error).__name__}: {error}")
