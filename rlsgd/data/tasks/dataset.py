"""Problems from a data set on record: a file, a folder or a name on the Hugging Face hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NoReturn

from lightning.pytorch.utilities import rank_zero_info

from rlsgd.core.problems import Problem
from rlsgd.data.cells import Empty, answer_text, question_of
from rlsgd.data.layouts import Layout, recognised
from rlsgd.data.loading import check_path, load_table
from rlsgd.data.passes import rows_of_epoch
from rlsgd.data.tasks.base import Split, Task, check_fraction, question_hash
from rlsgd.data.written import Table, at_path, has_path, is_class_label, plain


@dataclass(frozen=True)
class _Splits:
    train: list[Problem]
    validation: list[Problem]
    test: list[Problem]


class DatasetTask(Task):
    """Questions and answers from a file, a folder, the hub, or what `rlsgd data prepare` has kept.

    A file is `.jsonl`, `.json`, `.parquet` or `.csv`. The problems of an evaluation that have a
    column `benchmark` are also reported by benchmark.

    Training walks through the rows again and again, each pass in another order. Questions of the
    validation set are removed from test and training, questions of the test set from training, by
    their text. What has no set of its own is held out of the training rows.

    A question may also be a chat: a list of `{role, content}`. It then needs a chat template, and a
    last turn of the assistant's is taken off. An answer is text or a number, as it was written, or
    a list of one. All other columns travel along in `Problem.metadata["columns"]`, for rewards.

    The layouts of GSM8K, MATH, NuminaMath, DAPO-17k, verl, OpenR1 and Big-Math are recognised by
    their columns. A solution whose last line or box is the answer stays in
    `Problem.metadata["solution"]`, for supervised fine-tuning.

    Args:
        path: file, folder, name of a data set of `rlsgd data list`, or data set name on the hub.
        split: the split to train on, also a slice such as `train[:80%]`. A single file is one
            split, called `train`.
        question_column: column with the question, dots for a field within: `extra.question`. By
            default that of the layout, or `question`.
        answer_column: column with the answer, such as `reward_model.ground_truth`. By default that
            of the layout, or `answer`.
        unanswered: fate of a row without an answer: an error, or left out (`drop`) and counted.
        name: configuration of a data set on the hub, such as `main`.
        validation_path: another file, folder or name for validation; by default `path`.
        validation_split: the split to validate on; with neither of the two, rows are held out.
        test_path: like `validation_path`, for test.
        test_split: like `validation_split`, for test.
        held_out_fraction: share of the distinct training questions held out for those of
            validation and test that have no rows of their own, half for each of the two.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        question_column: str | None = None,
        answer_column: str | None = None,
        unanswered: Literal["error", "drop"] = "error",
        name: str | None = None,
        validation_path: str | None = None,
        validation_split: str | None = None,
        test_path: str | None = None,
        test_split: str | None = None,
        held_out_fraction: float = 0.1,
    ) -> None:
        check_fraction(
            held_out_fraction, flag="--data.task.held_out_fraction", lowest_excluded=False
        )
        given = {"path": path, "validation_path": validation_path, "test_path": test_path}
        for flag, value in given.items():
            if value is not None:
                check_path(value, f"--data.task.{flag}")
        self.path = path
        self.split = split
        self.question_column = question_column
        self.answer_column = answer_column
        self.unanswered = unanswered
        self.name = name
        self.validation_path = validation_path
        self.validation_split = validation_split
        self.test_path = test_path
        self.test_split = test_split
        self.held_out_fraction = held_out_fraction

    def prepare(self) -> None:
        _ = self._splits

    def train_problems(self, *, seed: int, epoch: int, count: int) -> list[Problem]:
        rows = self._splits.train
        return [rows[i] for i in rows_of_epoch(len(rows), seed=seed, epoch=epoch, count=count)]

    def validation_problems(self, count: int) -> list[Problem]:
        return self._held_out("validation", self._splits.validation, count)

    def test_problems(self, count: int) -> list[Problem]:
        return self._held_out("test", self._splits.test, count)

    def rows(self, split: Split) -> list[Problem]:
        return getattr(self._splits, split)

    def restrict(self, fits: Callable[[Problem], bool]) -> None:
        rows = (filter(fits, self.rows(s)) for s in ("train", "validation", "test"))
        self._splits = _Splits(*map(list, rows))

    def _held_out(self, kind: str, rows: list[Problem], count: int) -> list[Problem]:
        if count and not rows:
            raise ValueError(
                f"--data.task.{kind}_path: the {kind} set is empty; name a {kind} path or split, "
                "or raise --data.task.held_out_fraction"
            )
        return rows[:count]

    @cached_property
    def _splits(self) -> _Splits:
        rows = self._load("path", self.path, "split", self.split)
        validation = self._load_if_given("validation", self.validation_path, self.validation_split)
        test = self._load_if_given("test", self.test_path, self.test_split)
        rows = _without(rows, validation or [])
        if test is not None:
            test = _without(test, validation or [])
            rows = _without(rows, test)
        first_rows = {row.question: row for row in reversed(rows)}
        ranked = sorted(first_rows.values(), key=lambda row: question_hash(row.question))
        size = 0
        if self.held_out_fraction > 0:
            size = max(1, round(self.held_out_fraction / 2 * len(ranked)))
        if validation is None:
            validation, ranked = ranked[:size], ranked[size:]
        if test is None:
            test = ranked[:size]
        train = _without(rows, validation + test)
        if not train:
            raise ValueError(
                f"--data.task.path: nothing is left to train on: all {len(first_rows)} questions "
                "are in validation or test; give other rows to those, or set "
                "--data.task.held_out_fraction to 0"
            )
        return _Splits(train, validation, test)

    def _load_if_given(
        self, kind: str, path: str | None, split: str | None
    ) -> list[Problem] | None:
        if path is None and split is None:
            return None
        default = "train" if path is not None else self.split
        return self._load(f"{kind}_path", path or self.path, f"{kind}_split", split or default)

    def _load(self, path_flag: str, path: str, split_flag: str, split: str) -> list[Problem]:
        table = load_table(path, split, self.name, f"--data.task.{path_flag}", split_flag)
        question, answer, layout = recognised(table, self.question_column, self.answer_column)
        for flag, column in (("question_column", question), ("answer_column", answer)):
            if not has_path(table, column):
                raise ValueError(
                    f"--data.task.{flag}: {path} has no column {column!r}; its columns are "
                    f"{', '.join(table.columns)}"
                )
            if is_class_label(table, column):
                raise ValueError(
                    f"--data.task.{flag}: row 0 (counted from 0) of {path} has a ClassLabel in "
                    f"{column!r}, the number of a name that is kept elsewhere; write the names"
                )
        counts: Counter[str] = Counter()
        rows = [
            problem
            for number, row in enumerate(table.rows)
            if (problem := self._problem(row, number, path, (question, answer, layout), counts))
        ]
        self._tell(path, table, layout, counts)
        return rows

    def _problem(
        self,
        row: dict[str, Any],
        number: int,
        path: str,
        columns: tuple[str, str, Layout | None],
        counts: Counter[str],
    ) -> Problem | None:
        """The problem of a row, or None where it has no answer and may be left out."""
        question_column, answer_column, layout = columns

        def refuse(flag: str, error: ValueError) -> NoReturn:
            drop = "; --data.task.unanswered drop leaves such rows out"
            raise ValueError(
                f"--data.task.{flag}: row {number} (counted from 0) of {path} {error}"
                + (drop if isinstance(error, Empty) and flag == "answer_column" else "")
            ) from None

        try:
            question, turns, solved = question_of(at_path(row, question_column))
        except ValueError as error:
            refuse("question_column", error)
        counts["solved"] += solved
        metadata: dict[str, Any] = {}
        try:
            answer = answer_text(at_path(row, answer_column))
            if layout is not None and layout.final_answer is not None:
                metadata["solution"] = answer
                answer = layout.final_answer(answer)
            if layout is not None and answer.strip().lower() in layout.no_answer:
                raise Empty(f"has the answer {answer!r}, which stands for none")
        except Empty as error:
            if self.unanswered == "error":
                refuse("answer_column", error)
            counts["unanswered"] += 1
            return None
        except ValueError as error:
            refuse("answer_column", error)
        others = {k: v for k, v in row.items() if k not in (question_column, answer_column)}
        metadata["columns"] = plain(others)
        if turns is not None:
            metadata["messages"] = turns
        return Problem(question, answer, metadata)

    def _tell(self, path: str, table: Table, layout: Layout | None, counts: Counter[str]) -> None:
        """Say once what was taken from where, and what was left out."""
        if layout is not None:
            rank_zero_info(
                f"{path}: the layout of {layout.name}: questions from {layout.question!r}, "
                f"{layout.source}"
            )
        if counts["solved"]:
            rank_zero_info(
                f"{path}: {counts['solved']} of {len(table.rows)} chats end with a turn of the "
                "assistant's, which is taken off: a prompt would give the answer away"
            )
        if counts["unanswered"]:
            rank_zero_info(
                f"{path}: {counts['unanswered']} of {len(table.rows)} rows have no answer and are "
                "left out (--data.task.unanswered drop)"
            )


def _without(rows: list[Problem], excluded: list[Problem]) -> list[Problem]:
    questions = {row.question for row in excluded}
    return [row for row in rows if row.question not in questions]
