"""How difficult an environment is: a window of levels whose upper end rises (RLVE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RisingRule:
    """When the highest difficulty rises, and how many difficulties are drawn from.

    Args:
        window: difficulties that problems are drawn from, the highest included.
        threshold: the accuracy at the highest difficulty from which on it rises.
        min_prompts: prompts at the highest difficulty before its accuracy is looked at.
    """

    window: int
    threshold: float
    min_prompts: int

    def __post_init__(self) -> None:
        if self.window < 1 or self.min_prompts < 1:
            raise ValueError(
                "--data.task.window and --data.task.min_prompts must be at least 1; got "
                f"{self.window} and {self.min_prompts}"
            )
        if not 0 < self.threshold <= 1:
            raise ValueError(
                f"--data.task.threshold must be above 0 and at most 1; got {self.threshold}"
            )


class Difficulty:
    """The window [low, high] of one environment in every epoch.

    `high` rises by one if the share of correct completions reaches the threshold, of all that were
    recorded at `high` since it was last looked at, and it is looked at as soon as those are of
    `min_prompts` prompts. Either way the count starts anew. It never falls.

    Each rise is kept with the epoch from which on it holds, so that the window is a function of the
    epoch, and what is recorded of an epoch never changes that epoch's own problems.

    Args:
        rule: condition under which it rises.
        initial: `high` at the start.
        last: the most that `high` can be.
    """

    def __init__(self, rule: RisingRule, initial: int, last: int) -> None:
        self.rule = rule
        self.initial = initial
        self.last = last
        self.rises: list[int] = []
        self.counts = [0, 0, 0]  # prompts, completions and correct ones since `high` was looked at
        self.seen = (0, 0, 0)  # the same before the count last started anew, for the log

    def high(self, epoch: int) -> int:
        """The highest difficulty of an epoch's problems."""
        rises = sum(first_epoch <= epoch for first_epoch in self.rises)
        return min(self.initial + rises, self.last)

    def low(self, epoch: int) -> int:
        """The lowest."""
        return max(0, self.high(epoch) - self.rule.window + 1)

    def record(self, epoch: int, prompts: int, completions: int, correct: int) -> None:
        """Count what was sampled at `high` of this epoch, and rise from the next one on.

        Args:
            epoch: the present one.
            prompts: how many had that difficulty, over all ranks.
            completions: sampled for them.
            correct: completions that got full marks.
        """
        if self.rises and self.rises[-1] > epoch:
            return  # another round of this epoch has made it rise: these are no longer at `high`
        added = (prompts, completions, correct)
        self.counts = [old + new for old, new in zip(self.counts, added, strict=True)]
        prompts, completions, correct = self.seen = tuple(self.counts)
        if prompts < self.rule.min_prompts:
            return
        self.counts = [0, 0, 0]
        # a quotient is rounded like the threshold itself, so that 72 of 80 reach 0.9
        if correct / completions >= self.rule.threshold and self.high(epoch) < self.last:
            self.rises.append(epoch + 1)

    def metrics(self, epoch: int) -> dict[str, float]:
        """What is logged of this epoch: its window, and the count that decided what follows."""
        prompts, completions, correct = self.seen
        metrics = {
            "high": float(self.high(epoch)),
            "low": float(self.low(epoch)),
            "prompts_at_high": float(prompts),
        }
        if completions:
            metrics["accuracy_at_high"] = correct / completions
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self.initial, "rises": list(self.rises), "counts": list(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.initial = state["initial"]
        self.rises = list(state["rises"])
        self.counts = list(state["counts"])
