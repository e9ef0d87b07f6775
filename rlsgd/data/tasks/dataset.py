"""Problems from a data set on record: a file, a folder or a name on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsgd.core.problems import Problem
from rlsgd.data.passes import rows_of_epoch
from rlsgd.data.tasks.base import Task, check_fraction, question_hash
from rlsgd.preparation.prepared import is_prepared_name, prepared_files

if TYPE_CHECKING:
    from datasets import Dataset

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


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

    A question may also be a chat: a list of `{role, content}`. It then needs a chat template. All
    other columns travel along in `Problem.metadata["columns"]`, for rewards.

    Args:
        path: file, folder, name of a data set of `rlsgd data list`, or data set name on the hub.
        split: the split to train on, also a slice such as `train[:80%]`. A single file is one
            split, called `train`.
        question_column: column with the question.
        answer_column: column with the answer; numbers are taken as text.
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
        question_column: str = "question",
        answer_column: str = "answer",
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
                _check_path(value, f"--data.task.{flag}")
        self.path = path
        self.split = split
        self.question_column = question_column
        self.answer_column = answer_column
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
        table = _load_table(path, split, self.name, f"--data.task.{path_flag}", split_flag)
        for flag, column in (
            ("question_column", self.question_column),
            ("answer_column", self.answer_column),
        ):
            if column not in table.column_names:
                raise ValueError(
                    f"--data.task.{flag}: {path} has no column {column!r}; its columns are "
                    f"{', '.join(table.column_names)}"
                )
        return [self._problem(row, number, path) for number, row in enumerate(table)]  # pyright: ignore[reportArgumentType]

    def _problem(self, row: dict[str, Any], number: int, path: str) -> Problem:
        question, answer = row.pop(self.question_column), row.pop(self.answer_column)
        for flag, value in (("question_column", question), ("answer_column", answer)):
            if value is None or value == [] or (isinstance(value, str) and not value.strip()):
                raise ValueError(
                    f"--data.task.{flag}: row {number} (counted from 0) of {path} is empty there"
                )
        metadata: dict[str, Any] = {"columns": row}
        if isinstance(question, list):
            if not all(isinstance(t, dict) and {"role", "content"} <= set(t) for t in question):
                raise ValueError(
                    f"--data.task.question_column: row {number} (counted from 0) of {path} is a "
                    "list, but not of {role, content}"
                )
            metadata["messages"] = [{k: turn[k] for k in ("role", "content")} for turn in question]
            question = "\n\n".join(str(turn["content"]) for turn in question)
        return Problem(str(question), str(answer), metadata)


def _without(rows: list[Problem], excluded: list[Problem]) -> list[Problem]:
    questions = {row.question for row in excluded}
    return [row for row in rows if row.question not in questions]


def _check_path(path: str, flag: str) -> None:
    if is_prepared_name(path):
        _prepared(path, flag)
        return
    place = Path(path).expanduser()
    looks_local = path.startswith((".", "/", "~")) or place.suffix in _BUILDERS
    if looks_local and not place.exists():
        raise ValueError(f"{flag}: there is no file or folder {path!r}")
    if place.is_file() and place.suffix not in _BUILDERS:
        raise ValueError(f"{flag}: {path!r} must end in one of {', '.join(_BUILDERS)}")
    if place.is_file() and place.stat().st_size == 0:
        raise ValueError(f"{flag}: the file {path!r} is empty")


def _prepared(name: str, flag: str) -> list[Path]:
    """Files of a prepared data set; the error names the flag."""
    try:
        return prepared_files(name)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def _load_table(path: str, split: str, name: str | None, flag: str, split_flag: str) -> Dataset:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    place = Path(path).expanduser()
    prepared = _prepared(path, flag) if is_prepared_name(path) else []
    try:
        if prepared:
            table = load_dataset("json", data_files=list(map(str, prepared)), split=split)
        elif place.is_file():
            builder = _BUILDERS[place.suffix]
            table = load_dataset(builder, data_files=str(place), split=split)
        elif (place / "state.json").exists() or (place / "dataset_dict.json").exists():
            saved = load_from_disk(str(place))
            table = saved[split] if isinstance(saved, DatasetDict) else saved
        else:
            table = load_dataset(str(place) if place.is_dir() else path, name, split=split)
    except Exception as error:
        raise ValueError(
            f"{flag}: cannot load {path!r}, split {split!r} (--data.task.{split_flag}); does it "
            f"exist, and has it rows? {type(error).__name__}: {error}"
        ) from error
    assert isinstance(table, Dataset)
    return table
