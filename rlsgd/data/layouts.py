"""Layouts of public data sets, recognised by their columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from rlsgd.data.cells import after_hashes, last_box
from rlsgd.data.written import Table, at_path, has_path

# what a column of whole solutions shows in at least one row
_MARKERS: dict[Callable[[str], str], re.Pattern[str]] = {
    after_hashes: re.compile(r"^####[^\n]*\s*\Z", re.MULTILINE),
    last_box: re.compile(r"\\(?:boxed|fbox)\b"),
}


class Layout(NamedTuple):
    """Which columns hold question and answer, and how the answer is read out of its column."""

    name: str
    question: str
    answer: str
    columns: tuple[str, ...] = ()  # that are there besides the two
    absent: tuple[str, ...] = ()  # that would make it another layout
    final_answer: Callable[[str], str] | None = None  # where the column holds a whole solution
    no_answer: tuple[str, ...] = ()  # texts that stand for none

    @property
    def source(self) -> str:
        """Where answers come from, in words."""
        if self.final_answer is None:
            return f"answers from {self.answer!r}"
        marker = "the line after ####" if self.final_answer is after_hashes else "the last \\boxed"
        return f"answers from {marker} of {self.answer!r}"


# the first that fits; a layout with more columns comes before one with fewer
LAYOUTS = (
    Layout("GSM8K", "question", "answer", final_answer=after_hashes),
    Layout("verl or DAPO-17k", "prompt", "reward_model.ground_truth"),
    Layout("Big-Math", "problem", "answer", ("llama8b_solve_rate",)),
    Layout("Big-Math", "prompt", "answer", ("llama8b_solve_rate",)),
    Layout("Big-Math", "prompt", "solution", ("llama8b_solve_rate",)),
    Layout("OpenR1-Math", "problem", "answer", ("generations",), no_answer=("proof", "notfound")),
    Layout(
        "NuminaMath-1.5",
        "problem",
        "answer",
        ("problem_type", "question_type", "solution"),
        no_answer=("proof", "notfound"),
    ),
    Layout("NuminaMath", "problem", "solution", ("messages",), ("answer",), last_box),
    Layout("MATH with answers", "problem", "answer", ("solution",)),
    Layout("MATH", "problem", "solution", (), ("answer",), last_box),
)


def recognised(
    table: Table, question: str | None, answer: str | None
) -> tuple[str, str, Layout | None]:
    """The question column, the answer column, and the layout that they are of, if any.

    A column that is named wins; `question` and `answer` are looked for where nothing fits.
    """
    if question is None and answer is None and {"question", "answer"} <= set(table.columns):
        question, answer = "question", "answer"
    for layout in LAYOUTS:
        named = question in (None, layout.question) and answer in (None, layout.answer)
        if named and _fits(layout, table):
            return layout.question, layout.answer, layout
    if (question is None) != (answer is None):  # the other one as its layout has it
        for layout in LAYOUTS:
            if _fits(layout, table):
                return question or layout.question, answer or layout.answer, None
    return question or "question", answer or "answer", None


def _fits(layout: Layout, table: Table) -> bool:
    there = (layout.question, layout.answer, *layout.columns)
    if any(column in table.columns for column in layout.absent):
        return False
    if not all(has_path(table, column) for column in there):
        return False
    if layout.final_answer is None:
        return True
    marker = _MARKERS[layout.final_answer]
    answers = (at_path(row, layout.answer) for row in table.rows)
    return any(isinstance(answer, str) and marker.search(answer) for answer in answers)
