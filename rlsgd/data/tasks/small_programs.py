"""Short functions to write, shipped with the package."""

from __future__ import annotations

from pathlib import Path

import rlsgd
from rlsgd.data.tasks.dataset import DatasetTask
from rlsgd.rewards.base import Reward
from rlsgd.rewards.code_asserts import AssertTests

PROBLEMS = Path(rlsgd.__file__).parent / "assets" / "small_programs.jsonl"


class SmallPrograms(DatasetTask):
    """Forty small functions in the form of HumanEval (arXiv:2107.03374): `def` and a docstring.

    The completion continues the question, and by default `AssertTests` scores it by assertions in a
    sandbox. The problems are our own and easy; they are for trying things out, not a benchmark.

    Args:
        held_out_fraction: share of the problems that is never trained on; half of it is for
            validation, half for test.
    """

    def __init__(self, held_out_fraction: float = 0.5) -> None:
        super().__init__(
            str(PROBLEMS),
            question_column="prompt",
            answer_column="canonical_solution",
            held_out_fraction=held_out_fraction,
        )

    def default_reward(self) -> Reward:
        return AssertTests(continue_question=True)
