"""Mathematical equality: exact values and structures first, then math-verify and sympy."""

from __future__ import annotations

import logging
import re

from rlsgd.core.problems import Problem
from rlsgd.rewards import guard
from rlsgd.rewards.base import Reward
from rlsgd.rewards.extract import boxed, last_number
from rlsgd.rewards.maths.budget import processor_budget
from rlsgd.rewards.maths.equality import Comparison
from rlsgd.rewards.maths.find import find_answer, find_letter, letter_of
from rlsgd.rewards.maths.normal import normalised

BUDGET_SECONDS = 3.0  # of processor time for one completion; most take a few milliseconds


class MathVerify(Reward):
    r"""1 if the answer of the completion equals the answer on record, else 0.

    The answer is the last `\boxed`; without one the last `<answer>`, what is last said to be the
    answer, or the last formula or number. Numbers are compared exactly, and may have a currency,
    a unit, a percent sign, or be mixed, in scientific notation or Unicode. Sets, tuples and
    intervals are different things; a list without brackets is a set, and `x = 3, y = 4` is (3, 4).
    `i` is the imaginary unit. Where the answer on record is
    a single capital letter, the answer is a letter. What remains is compared by math-verify.

    An answer that is too large or too deeply nested scores 0 unread; one that takes more than 3
    seconds of processor time is a failure. So is an answer on record that cannot be read.

    Args:
        float_rounding: decimal places to which a decimal may be rounded where the other number is
            none: 0.333333 is 1/3 with 6 places.
        strict: variables must have the same names.
    """

    isolated = True
    fork_each = False  # sympy's parser evaluates arithmetic alone, see `guard.py`

    def __init__(self, float_rounding: int = 6, strict: bool = True) -> None:
        self.float_rounding = float_rounding
        self.strict = strict

    def prepare(self) -> None:
        import math_verify  # noqa: F401

        # It warns that its own time limit is off; ours is on. It needs SIGALRM, which in a thread
        # would score everything 0 (Math-Verify issue 55).
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        guard.install()

    def score(self, completion: str, problem: Problem) -> float:
        gold = boxed(problem.answer) or problem.answer
        if not normalised(gold):
            raise ValueError(f"cannot read the answer on record {problem.answer!r:.80} as maths")
        part = self.answer_part(completion)
        if part is None:
            return 0.0
        letter = (
            letter_of(gold)
            if re.fullmatch(r"\W*(?:\\(?:text|math)(?:bf|rm|it)?\{)?\W*[A-J]\W*", gold)
            else None
        )
        if letter is not None:
            return float(find_letter(part) == letter)
        answer = find_answer(part)
        if answer is None:
            return 0.0
        refusals = guard.refusals
        with processor_budget(BUDGET_SECONDS), guard.no_evaluation():
            is_equal = Comparison(self.float_rounding, self.strict).equal(gold, answer)
        if guard.refusals > refusals:  # a failure, as the reading of an answer evaluates no text
            raise guard.EvaluationRefused("the comparison would run the answer as a program")
        return float(is_equal)

    def answer_of(self, completion: str) -> str | None:
        part = self.answer_part(completion)
        if part is None:
            return None
        # By their text, since a second reading by sympy would double the cost of scoring.
        return boxed(part) or last_number(part) or part.strip()
