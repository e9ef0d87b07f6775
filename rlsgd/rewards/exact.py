"""The answer on record, found in the completion and compared."""

from __future__ import annotations

from rlsgd.core.problems import Problem
from rlsgd.rewards.base import Reward
from rlsgd.rewards.extract import EXTRACTORS, Extract, check_extract, last_number, read_number


class ExactAnswer(Reward):
    """1 if the extracted answer is the answer on record, else 0.

    White space around either is ignored. With `last_number` the two are compared as exact numbers
    (`1,000` equals `1000.0`, `1/2` equals `0.5`), and the answer on record is read in the same way.

    Args:
        extract: place of the answer: the `whole` completion, its `last_number`, the last
            `answer_tag` (`<answer>...</answer>`), or the last `boxed` (LaTeX).
        ignore_case: compare without regard to upper and lower case.
    """

    isolated = False

    def __init__(self, extract: Extract = "whole", ignore_case: bool = False) -> None:
        check_extract(extract)
        self.extract = extract
        self.ignore_case = ignore_case

    def score(self, completion: str, problem: Problem) -> float:
        part = self.answer_part(completion)
        if self.extract == "last_number":
            expected = read_number(problem.answer)
            if expected is None:
                raise ValueError(f"no number in the answer on record {problem.answer!r:.80}")
            return float(part is not None and read_number(part) == expected)
        found = None if part is None else EXTRACTORS[self.extract](part)
        return float(found is not None and self._fold(found) == self._fold(problem.answer.strip()))

    def answer_of(self, completion: str) -> str | None:
        part = self.answer_part(completion)
        if part is None:
            return None
        if self.extract == "last_number":
            number = read_number(part)
            try:
                return None if number is None else str(number)
            except ValueError:  # Python writes no more than 4,300 digits
                return last_number(part)
        found = EXTRACTORS[self.extract](part)
        return None if found is None else self._fold(found)

    def _fold(self, text: str) -> str:
        return text.casefold() if self.ignore_case else text
