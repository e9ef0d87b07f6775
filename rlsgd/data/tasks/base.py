"""What a task is, and how a question is assigned to a set."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

from rlsgd.core.made_with import remembers_arguments
from rlsgd.core.problems import Problem
from rlsgd.rewards.base import Reward

Split = Literal["train", "validation", "test"]


@remembers_arguments
class Task(ABC):
    """Verifiable problems in three sets without a question in common.

    The methods are pure: whatever was called before, and in whichever process, the same arguments
    give the same problems. Resuming, comparing optimizers and sharding rest on that. Where a task
    adapts to the policy, the training problems of an epoch depend on what was recorded of earlier
    epochs as well, and `state_dict` has all of that.
    """

    def prepare(self) -> None:
        """Fetch what the task needs, once for all processes of a machine."""
        return None

    @abstractmethod
    def train_problems(self, *, seed: int, epoch: int, count: int) -> list[Problem]:
        """The `count` training problems of one epoch, a function of (seed, epoch)."""

    @abstractmethod
    def validation_problems(self, count: int) -> list[Problem]:
        """At most `count` problems, the same for every seed; none is ever trained on."""

    @abstractmethod
    def test_problems(self, count: int) -> list[Problem]:
        """At most `count` problems, in neither the training nor the validation set."""

    def default_reward(self) -> Reward | None:
        """The reward that belongs to the task, if there is one."""
        return None

    # ---- for tasks that know all of their problems

    def rows(self, split: Split) -> list[Problem] | None:
        """All problems of a set; None where they are made as they are needed."""
        return None

    def restrict(self, fits: Callable[[Problem], bool]) -> None:
        """Leave problems out for which `fits` says no.

        Raises:
            ValueError: the task cannot.
        """
        raise ValueError(
            f"--data.overlong drop: the task {type(self).__name__} cannot leave problems out; "
            "raise --data.max_prompt_tokens"
        )

    # ---- for tasks that adapt to the policy

    def record(
        self, problems: list[Problem], correct: list[int], group_size: int, *, epoch: int
    ) -> None:
        """Learn how many of the `group_size` completions of each problem were correct.

        Every rank calls it with its own, as often as the others.
        """
        return None

    def metrics(self, epoch: int) -> dict[str, float]:
        """What there is to log of the problems of an epoch, the same on every rank."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What was learned, as plain data for the checkpoint; the same on every rank."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        return None


def question_hash(question: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64


def check_fraction(value: float, *, flag: str, lowest_excluded: bool) -> None:
    """Raise unless the held-out fraction is in [0, 1), or (0, 1)."""
    if not 0 <= value < 1 or (lowest_excluded and value == 0):
        interval = "between 0 and 1" if lowest_excluded else "at least 0 and below 1"
        raise ValueError(f"{flag} must be {interval}; got {value}")
