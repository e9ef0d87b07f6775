"""What a run says of its rewards: why verifiers failed, and that no group has had a gradient."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from rlsgd.core.distributed import gathered
from rlsgd.core.problems import NothingScored, Prompt, Scores

MOST_REASONS = 5  # printed in a run


class RewardNotices:
    """Listens to scores and speaks up; the first failures of each rollout are kept for the logs."""

    def __init__(self) -> None:
        self.failures: list[dict[str, Any]] = []
        self._reasons: set[str] = set()
        self._verdicts: list[str] = []  # of every completion a reason, or nothing
        self._streak = 0
        self._epoch: int | None = None
        self._spread = False

    def failed(self, prompts: list[Prompt], completions: list[str], scores: Scores) -> None:
        """Print each new reason once, and keep the first failures."""
        rows = zip(prompts, completions, scores.rewards, scores.failures, strict=True)
        failures = [
            {
                "prompt": prompt.text,
                "completion": completion,
                "answer": prompt.problem.answer,
                "reward": reward,
                "truncated": None,
                "failure": reason,
            }
            for prompt, completion, reward, reason in rows
            if reason
        ]
        self.failures = failures[:3]
        self._verdicts += [reason or "" for reason in scores.failures]
        counts = Counter(failure["failure"] for failure in failures)
        for reason, count in counts.most_common():
            if len(self._reasons) < MOST_REASONS and reason not in self._reasons:
                self._reasons.add(reason)
                rank_zero_info(
                    f"--data.reward failed for {count} of {len(completions)} completions: "
                    f"{' '.join(reason.split()):.300}"
                )

    def require_scores(self, what: str) -> None:
        """Stop where none of the scorings since the last call gave a score, on any rank.

        Every rank must call it.

        Raises:
            NothingScored: gives the first reason.
        """
        reasons = gathered(self._verdicts)
        self._verdicts = []
        if reasons and all(reasons):
            raise NothingScored(
                f"--data.reward failed for all {len(reasons)} completions of {what}, so its "
                f"rewards mean nothing; the first reason: {' '.join(reasons[0].split()):.500}"
            )

    def spread(self, scores: Scores, group_size: int, epoch: int) -> None:
        """Say it when no group of any rank has had two different rewards for some epochs.

        Said after 2 such epochs in a row, after 4, 8, 16 ... Every rank must call it.
        """
        rewards = scores.rewards
        groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
        found = gathered([any(len(set(group)) > 1 for group in groups)])
        values = gathered(rewards)
        first = epoch != self._epoch and group_size > 1  # of several rounds in an epoch
        if epoch != self._epoch:
            self._epoch, self._spread = epoch, False
            self._streak += 1
        self._spread = self._spread or any(found)
        if self._spread:
            self._streak = 0
        elif first and self._streak > 1 and self._streak & (self._streak - 1) == 0:
            lowest, highest = min(values), max(values)
            which = f"all are {lowest:g}" if lowest == highest else f"{lowest:g} to {highest:g}"
            rank_zero_info(
                f"no group has had two different rewards for {self._streak} epochs ({which}): "
                "where completions of a group are compared, as in GRPO, there is no gradient"
            )
