"""Mathematical equality by math-verify (LaTeX and plain expressions, compared with sympy)."""

from __future__ import annotations

import logging

from rlsgd.core.problems import Problem
from rlsgd.rewards.base import Reward
from rlsgd.rewards.extract import boxed, last_number

_MATHS_DELIMITERS = ("$", "\\boxed", "\\[", "\\(")


class MathVerify(Reward):
    r"""1 if the last mathematical expression of the completion equals the answer on record, else 0.

    An answer on record without `$` or `\boxed` is read as LaTeX. One that cannot be read at all is
    a failure, not a 0.

    Args:
        float_rounding: decimal places to which floating point numbers are compared.
        strict: variables must have the same names, and a set is no tuple.
    """

    isolated = True

    def __init__(self, float_rounding: int = 6, strict: bool = True) -> None:
        self.float_rounding = float_rounding
        self.strict = strict

    def prepare(self) -> None:
        import math_verify  # noqa: F401

        # It warns that its own time limit is off; the scorer's is on.
        logging.getLogger("math_verify").setLevel(logging.ERROR)

    def score(self, completion: str, problem: Problem) -> float:
        from math_verify import verify

        answer = problem.answer
        if not any(delimiter in answer for delimiter in _MATHS_DELIMITERS):
            answer = f"${answer}$"
        gold = _parse(answer)
        if not gold:
            raise ValueError(f"cannot read the answer on record {problem.answer!r:.80} as maths")
        return float(
            verify(
                gold,
                _parse(completion),
                float_rounding=self.float_rounding,
                strict=self.strict,
                timeout_seconds=None,
                raise_on_error=True,
            )
        )

    def answer_of(self, completion: str) -> str | None:
        # By their text, since a second reading by sympy would double the cost of scoring.
        return boxed(completion) or last_number(completion) or completion.strip()


def _parse(text: str) -> list:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    # math-verify keeps time with SIGALRM, which works in the main thread alone and else scores
    # everything 0 (Math-Verify issue 55); the scorer keeps the time from outside.
    return parse(
        text,
        extraction_config=[LatexExtractionConfig(), ExprExtractionConfig()],
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
        raise_on_error=True,
    )
