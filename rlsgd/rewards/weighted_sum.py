"""Several rewards as one."""

from __future__ import annotations

import math

from rlsgd.core.problems import Problem
from rlsgd.rewards.base import BatchReward, Reward, Trial, finite_number


class WeightedSum(Reward):
    """The weighted sum of other rewards; each member's own score is logged by its name.

    Full marks are the sum of the positive weights times their members' full marks. One member that
    fails makes the completion a failure.

    Args:
        rewards: the members.
        weights: one factor for each member; negative ones are penalties.
    """

    def __init__(self, rewards: list[Reward], weights: list[float]) -> None:
        if not rewards or len(rewards) != len(weights):
            raise ValueError(
                "--data.reward.weights needs one weight for each of --data.reward.rewards (at "
                f"least one); got {len(weights)} weights for {len(rewards)} rewards"
            )
        if any(isinstance(reward, BatchReward) for reward in rewards):
            raise ValueError(
                "--data.reward.rewards: a function of all completions at once cannot be a member; "
                "write one of a single completion"
            )
        if not all(map(math.isfinite, weights)) or max(weights) <= 0:
            raise ValueError(
                f"--data.reward.weights must be finite, with a positive one; got {weights}"
            )
        self.rewards = rewards
        self.weights = weights
        self.isolated = any(reward.isolated for reward in rewards)
        isolated = [reward for reward in rewards if reward.isolated]
        self.walled = any(reward.walled for reward in isolated)
        self.fork_each = any(reward.fork_each for reward in isolated)
        # Members with walls of their own cannot work behind another's: each has its own worker.
        self.is_mixed = len({reward.walled for reward in isolated}) > 1 or any(
            isinstance(reward, WeightedSum) and reward.is_mixed for reward in rewards
        )
        self.full_marks = sum(
            weight * reward.full_marks
            for weight, reward in zip(weights, rewards, strict=True)
            if weight > 0
        )
        self._names: list[str] = []
        for reward in rewards:
            name, number = reward.name, 2
            while name in self._names:
                name, number = f"{reward.name}_{number}", number + 1
            self._names.append(name)

    @property
    def part_names(self) -> list[str]:
        return list(self._names)

    def look_after(self, thinking_tags: tuple[str, str] | None) -> None:
        super().look_after(thinking_tags)
        for reward in self.rewards:
            reward.look_after(thinking_tags)

    def check(self, problem: Problem) -> None:
        for reward in self.rewards:
            reward.check(problem)

    def source(self, problem: Problem) -> str:
        return " ".join(reward.source(problem) for reward in self.rewards)

    def trials(self, problem: Problem) -> list[Trial]:
        """Those of no right answer: its members may want more of a completion than an answer."""
        trials = [trial for reward in self.rewards for trial in reward.trials(problem)]
        return [trial for trial in trials if not trial.is_right]

    def prepare(self) -> None:
        for reward in self.rewards:
            reward.prepare()

    def expect(self, problem: Problem) -> None:
        for reward in self.rewards:
            reward.expect(problem)

    def score(self, completion: str, problem: Problem) -> float:
        return self.grade(completion, problem)[0]

    def parts(self, completion: str, problem: Problem) -> dict[str, float]:
        return self.grade(completion, problem)[1]

    def answer_of(self, completion: str) -> str | None:
        """By the first member that has a way to find it."""
        finder = self.finder_of_answers
        return completion.strip() if finder is None else finder.answer_of(completion)

    @property
    def finder_of_answers(self) -> Reward | None:
        """The first member that has a way to find answers."""
        ways = (r for r in self.rewards if type(r).answer_of is not Reward.answer_of)
        return next(ways, None)

    def grade(self, completion: str, problem: Problem) -> tuple[float, dict[str, float]]:
        parts = {
            name: finite_number(reward.score(completion, problem), name)
            for name, reward in zip(self._names, self.rewards, strict=True)
        }
        return self.total(parts), parts

    def total(self, parts: dict[str, float]) -> float:
        """The weighted sum of the members' scores."""
        return sum(w * s for w, s in zip(self.weights, parts.values(), strict=True))
