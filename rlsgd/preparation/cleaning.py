"""What of a training set is trained on: readable, short enough, not in a benchmark, verifiable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any

from rlsgd.preparation.formats import Dropped, Row, text_hash
from rlsgd.preparation.overlap import Overlap
from rlsgd.preparation.sources import Source
from rlsgd.preparation.verification import Verifier

BATCH = 512  # rows that are tokenized and verified together


class Cleaner:
    """Problems fit to train on, in the order that a seed gives the rows.

    A row's place depends on the seed and its number alone, so that two preparations which drop
    other rows still share the rest.

    Args:
        source: whose rows they are.
        overlap: knows the benchmarks.
        tokenizers: of the models to be trained.
        max_question_tokens: of a question, for each of them; 0 is no limit.

    Attributes:
        dropped: why rows were left out, and how many, among those that were looked at.
    """

    def __init__(
        self,
        source: Source,
        overlap: Overlap,
        *,
        tokenizers: Sequence[Any],
        max_question_tokens: int,
    ) -> None:
        self.source = source
        self.overlap = overlap
        self.tokenizers = tokenizers if max_question_tokens else ()
        self.max_question_tokens = max_question_tokens
        self.dropped: Counter[str] = Counter()
        self._questions: set[str] = set()

    def sample(self, table: Any, *, seed: int, count: int | None) -> list[Row]:
        """The first `count` problems, or all; each with the number of its `row`."""
        order = sorted(range(len(table)), key=lambda index: text_hash(f"{seed} {index}"))
        # a program has no single answer to compare
        verified = self.source.domain == "math"
        with Verifier("math", len(table)) if verified else nullcontext() as verifier:
            return list(islice(self._problems(table, order, verifier), count))

    def _problems(self, table: Any, order: list[int], verifier: Verifier | None) -> Iterator[Row]:
        for first in range(0, len(order), BATCH):
            indices = order[first : first + BATCH]
            rows = zip(indices, table.select(indices), strict=True)
            problems = [p for index, row in rows if (p := self._problem(index, row))]
            for tokenizer in self.tokenizers:
                problems = self._only(problems, self._short(tokenizer, problems), "too many tokens")
            if verifier and problems:
                passes = verifier.passes(problems)
                problems = self._only(problems, passes, "answer does not equal itself")
            yield from problems

    def _problem(self, index: int, row: dict[str, Any]) -> Row | None:
        if self.source.keep and not self.source.keep(row):
            return None
        problem = self.source.convert(row)
        reason = None
        if isinstance(problem, Dropped):
            reason = problem.reason
        elif problem["question"] in self._questions:
            reason = "same question as another row"
        elif self.overlap.overlaps(problem["question"]):
            reason = "in a benchmark"
        if reason:
            self.dropped[reason] += 1
            return None
        assert isinstance(problem, dict)
        self._questions.add(problem["question"])
        return {"row": index, **problem}

    def _short(self, tokenizer: Any, problems: list[Row]) -> list[bool]:
        if not problems:
            return []
        texts = [problem["question"] for problem in problems]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [len(token_ids) <= self.max_question_tokens for token_ids in encoded]

    def _only(self, problems: list[Row], kept: list[bool], reason: str) -> list[Row]:
        self.dropped[reason] += kept.count(False)
        return [problem for problem, keep in zip(problems, kept, strict=True) if keep]
