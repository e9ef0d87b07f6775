"""A reward tried on completions whose verdict is known, before anything is trained on its word."""

from __future__ import annotations

from collections import Counter

from rlsgd.core.problems import Problem
from rlsgd.rewards.scorer import Scorer

FROM_A_SOURCE = 2  # problems that are tried


def try_reward(scorer: Scorer, problems: list[Problem]) -> None:
    """Check a problem, and that known right and wrong completions of a few are told apart.

    Raises:
        ValueError: what the reward itself says of the problem or of the verdict.
    """
    reward = scorer.reward
    for problem in problems[:1]:
        reward.check(problem)
    counts: Counter[str] = Counter()
    tried: list[Problem] = []
    for problem in problems:
        counts[reward.source(problem)] += 1
        if counts[reward.source(problem)] <= FROM_A_SOURCE:
            tried.append(problem)
    pairs = [(trial, problem) for problem in tried for trial in reward.trials(problem)]
    if not pairs:
        return
    trials, of_problems = zip(*pairs, strict=True)
    scores = scorer.score([trial.completion for trial in trials], list(of_problems))
    for trial, mark, failure in zip(trials, scores.rewards, scores.failures, strict=True):
        full = mark >= reward.full_marks and failure is None
        if full != trial.is_right:
            raise ValueError(trial.refusal + (f" ({failure})" if failure else ""))
