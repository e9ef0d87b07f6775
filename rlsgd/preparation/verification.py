"""Answers on record, scored as if a model had given them: what fails cannot be rewarded."""

from __future__ import annotations

import os
from typing import Literal

from rlsgd.core.problems import Problem
from rlsgd.preparation.formats import Row
from rlsgd.rewards.base import Reward
from rlsgd.rewards.scorer import Scorer

PROBLEMS_OF_A_WORKER = 50  # fewer are not worth the start of a process


class Verifier:
    """Scores answers against themselves; a context manager, as it keeps worker processes.

    Args:
        domain: `math` compares by math-verify, `code` runs a program on record against its tests.
        problems: about how many there will be, for the number of processes.
    """

    def __init__(self, domain: Literal["math", "code"], problems: int = 1) -> None:
        self.domain = domain
        self.scorer = Scorer(
            _reward(domain),
            timeout_seconds=5.0 if domain == "math" else 40.0,
            workers=min(os.cpu_count() or 1, problems // PROBLEMS_OF_A_WORKER + 1),
        )

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.scorer.close()

    def passes(self, rows: list[Row]) -> list[bool]:
        """For each problem, whether its answer on record gets full marks."""
        completions = [self._as_completion(row["answer"]) for row in rows]
        problems = [Problem(row["question"], row["answer"], {"columns": row}) for row in rows]
        scores = self.scorer.score(completions, problems)
        return [reward >= scores.full_marks for reward in scores.rewards]

    def _as_completion(self, answer: str) -> str:
        return f"\\boxed{{{answer.strip('$')}}}" if self.domain == "math" else answer


def _reward(domain: str) -> Reward:
    from rlsgd.rewards import AssertTests, MathVerify

    if domain == "math":
        return MathVerify()
    # the tests of HumanEval+ and MBPP+ call a program many thousand times
    return AssertTests("tests", "entry_point", "setup", seconds=30.0)
