"""Which training questions share a run of words with a benchmark's questions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_WORD = re.compile(r"[^\W_]+")
FEWEST_WORDS = 5  # a shorter question would be found everywhere


@dataclass
class OverlapReport:
    """What was taken out of a training set.

    Attributes:
        removed: by benchmark, training questions that overlap with it.
        found: by benchmark, its problems that were found in the training set.
        examples: the first few runs of words of each benchmark.
    """

    removed: Counter[str] = field(default_factory=Counter)
    found: dict[str, set[int]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)


class Overlap:
    """Finds runs of `size` words that a text shares with the questions of benchmarks.

    Words are runs of letters and digits, in lower case; everything between them is ignored, so
    markup and punctuation do not hide a copy. A question with fewer words than that is looked for
    as a whole, unless it has fewer than `FEWEST_WORDS`.

    Args:
        benchmarks: questions by the benchmark's name.
        size: words of a run.
    """

    def __init__(self, benchmarks: Mapping[str, Sequence[str]], size: int = 13) -> None:
        if size < FEWEST_WORDS:
            raise ValueError(
                f"--overlap-words {size} is too few: runs of less than {FEWEST_WORDS} words are in "
                "every text"
            )
        self.report = OverlapReport(found={name: set() for name in benchmarks})
        # by length, each run of words with the problems that have it
        self._runs: dict[int, dict[str, set[tuple[str, int]]]] = {}
        for name, questions in benchmarks.items():
            for number, question in enumerate(questions):
                found = words(question)
                length = min(size, len(found))
                if length < FEWEST_WORDS:
                    continue
                table = self._runs.setdefault(length, {})
                for run in runs(found, length):
                    table.setdefault(run, set()).add((name, number))

    def overlaps(self, question: str) -> bool:
        """Whether a training question shares a run with a benchmark; counted in `report`."""
        found = words(question)
        shared: dict[tuple[str, int], str] = {}
        for length, table in self._runs.items():
            for run in runs(found, length):
                for problem in table.get(run, ()):
                    shared.setdefault(problem, run)
        for (name, number), run in sorted(shared.items()):
            self.report.found[name].add(number)
            examples = self.report.examples.setdefault(name, [])
            if len(examples) < 5 and run not in examples:
                examples.append(run)
        self.report.removed.update({name for name, _ in shared})
        return bool(shared)


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return _WORD.findall(text.lower())


def runs(found: list[str], length: int) -> Iterator[str]:
    """Every run of `length` words, joined by spaces."""
    for start in range(len(found) - length + 1):
        yield " ".join(found[start : start + length])
