"""Layouts of public data sets, and what a cell may hold, from files that these tests write."""

import datetime
import json
import logging

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from rlsgd.data.solutions import solution_of
from rlsgd.data.tasks import DatasetTask


def chat(text):
    return [{"role": "user", "content": text}]


def verl(number, source="openai/gsm8k"):
    return {
        "data_source": source,
        "prompt": chat(f"What is {number} + 1?"),
        "ability": "math",
        "reward_model": {"ground_truth": str(number + 1), "style": "rule"},
        "extra_info": {"index": number},
    }


def solved(number):
    return {"problem": f"What is {number} + 1?", "solution": rf"It is $\boxed{{{number + 1}}}$."}


def openr1(n):
    return {**solved(n), "answer": str(n + 1), "generations": ["<think>"], "problem_type": "x"}


LAYOUTS = {
    "GSM8K": lambda n: {"question": f"What is {n} + 1?", "answer": f"Add <<1>>.\n#### {n + 1}"},
    "MATH": lambda n: {**solved(n), "level": "Level 1", "type": "Algebra"},
    "NuminaMath": lambda n: {**solved(n), "source": "x", "messages": chat("x")},
    "NuminaMath-1.5": lambda n: {
        **solved(n),
        **{"answer": str(n + 1), "problem_type": "x", "question_type": "y"},
    },
    "verl or DAPO-17k": lambda n: verl(n, "math_dapo"),
    "OpenR1-Math": openr1,
    "Big-Math": lambda n: {
        **{"prompt": f"What is {n} + 1?", "answer": str(n + 1), "source": "x", "domain": ["y"]},
        "llama8b_solve_rate": 0.5,
    },
}


def write(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problems(task, count=100):
    task.held_out_fraction = 0.0
    task.prepare()
    return task.rows("train")[:count]


def one(folder, value, **row):
    [problem] = problems(DatasetTask(write(folder, [{"question": "q", "answer": value, **row}])))
    return problem.answer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_layout_is_recognised_and_said(layout, suffix, tmp_path, caplog):
    rows = [LAYOUTS[layout](n) for n in range(8)]
    path = write(tmp_path, rows)
    if suffix == "parquet":
        path = str(tmp_path / "rows.parquet")
        Dataset.from_list(rows).to_parquet(path)
    with caplog.at_level(logging.INFO):
        found = problems(DatasetTask(path))
    assert [(p.question, p.answer) for p in found] == [
        (f"What is {n} + 1?", str(n + 1)) for n in range(8)
    ]
    assert f"the layout of {layout}: questions from" in caplog.text
    assert ("messages" in found[0].metadata) == (layout == "verl or DAPO-17k")


def test_supervised_fine_tuning_learns_the_whole_solution(tmp_path):
    found = problems(DatasetTask(write(tmp_path, [LAYOUTS["GSM8K"](3)])))
    assert solution_of(found[0]) == "Add <<1>>.\n#### 4"


def test_a_column_that_is_named_wins(tmp_path):
    rows = [{**verl(1), "mine": "x", "extra_info": {"index": 1, "text": "2"}}]
    columns = {"question_column": "mine", "answer_column": "extra_info.text"}
    task = DatasetTask(write(tmp_path, rows), **columns)
    [problem] = problems(task)
    assert (problem.question, problem.answer) == ("x", "2")
    assert problem.metadata["columns"]["reward_model"] == {"ground_truth": "2", "style": "rule"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [LAYOUTS["GSM8K"](1), {"question": "q", "answer": "7"}],
            {},
            r"answer_column: row 1 .*####",
        ),
        ([solved(1), {"problem": "p", "solution": "7"}], {}, r"answer_column: row 1 .*no \\boxed"),
        (
            [{**openr1(1), "answer": "proof"}],
            {},
            r"answer_column: row 0 .*'proof', which stands for",
        ),
        (
            [verl(1)],
            {"answer_column": "reward_model"},
            r"answer_column: row 0 .*a dict with the fields ground_t",
        ),
        (
            [verl(1)],
            {"answer_column": "reward_model.truth"},
            r"answer_column: .*'reward_model.truth'",
        ),
        (
            [{**verl(1), "prompt": {"a": 1}}],
            {},
            r"question_column: row 0 .*a dict .*text or a chat",
        ),
        (
            [{"question": "q", "answer": "1"}, {"question": "q"}],
            {},
            r"answer_column: row 1 .*empty",
        ),
    ],
)
def test_wrong_forms_are_refused_with_flag_and_row(rows, options, message, tmp_path):
    with pytest.raises(ValueError, match=rf"--data.task.{message}"):
        DatasetTask(write(tmp_path, rows), **options).prepare()


def test_rows_without_an_answer_can_be_left_out(tmp_path, caplog):
    rows = [solved(1), {"problem": "Prove it.", "solution": "Clear."}, solved(2)]
    with caplog.at_level(logging.INFO):
        found = problems(DatasetTask(write(tmp_path, rows), unanswered="drop"))
    assert [p.answer for p in found] == ["2", "3"]
    assert "1 of 3 rows have no answer and are left out" in caplog.text


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        *(("42", "42"), (42, "42"), (["42"], "42"), ([42], "42"), (" 7 ", " 7 ")),
        *(("2024-02-29", "2024-02-29"), ("007", "007"), ("1e6", "1e6")),
        (12345678901234567890123, "12345678901234567890123"),
    ],
)
def test_answers_are_as_they_were_written(value, answer, tmp_path):
    assert one(tmp_path, value) == answer


def test_numbers_of_a_json_file_keep_their_digits(tmp_path):
    path = tmp_path / "rows.jsonl"
    numbers = ["42", "0.5", "0.10", "1e6", "-3", "1E-2", "9" * 5000]
    path.write_text(
        "".join(f'{{"question": "q{n}", "answer": {n}, "level": {n[:4]}}}\n' for n in numbers)
    )
    found = problems(DatasetTask(str(path)))
    assert [p.answer for p in found] == numbers
    assert found[0].metadata["columns"] == {"level": 42}
    assert found[1].metadata["columns"] == {"level": 0.5}


def test_cells_of_a_csv_file_are_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\na,42\nb,0.50\nc,2024-02-29\nd,007\n")
    assert [p.answer for p in problems(DatasetTask(str(path)))] == [
        "42",
        "0.50",
        "2024-02-29",
        "007",
    ]


@pytest.mark.parametrize(
    ("column", "answers"),
    [
        (pa.array([0.1, 42.0], pa.float32()), ["0.1", "42.0"]),
        (pa.array([0.1], pa.float64()), ["0.1"]),
        (pa.array([np.float16(0.1)], pa.float16()), ["0.1"]),
        (pa.array([2**63 - 1]), ["9223372036854775807"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([["7"], ["8"]]), ["7", "8"]),
        (pa.array([[0.1]], pa.list_(pa.float32())), ["0.1"]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_parquet_columns_by_type(column, answers, tmp_path):
    questions = pa.array([f"q{n}" for n in range(len(column))])
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"question": questions, "answer": column}), path)
    assert [p.answer for p in problems(DatasetTask(str(path)))] == answers


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": 1}, "a dict with the fields a"),
        (["1", "2"], "a list of 2"),
        ([["1"]], "a list of 1"),
        (True, "a value of type bool"),
        (float("nan"), "nan there, which is not a number"),
        (float("inf"), "inf there, which is not a number"),
        (None, "is empty there"),
        ([], "is empty there"),
        ([None], "is empty there"),
        ("  ", "is empty there"),
    ],
)
def test_all_else_is_refused_with_flag_row_and_type(value, said, tmp_path):
    with pytest.raises(ValueError, match=rf"--data.task.answer_column: row 0 .*{said}"):
        one(tmp_path, value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([datetime.datetime(2024, 2, 29)], "a value of type (Timestamp|datetime)"),
        ([datetime.date(2024, 2, 29)], "a value of type date"),
        ([b"7"], "a value of type bytes"),
        ([1.5, None], "(row 1 .*is empty|nan)"),
    ],
)
def test_types_of_parquet_that_are_no_answer(values, said, tmp_path):
    frame = pd.DataFrame({"question": [f"q{i}" for i in range(len(values))], "answer": values})
    frame.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=rf"--data.task.answer_column: .*{said}"):
        DatasetTask(str(tmp_path / "rows.parquet")).prepare()


@pytest.mark.parametrize("way", ["parquet", "disk"])
def test_class_labels_are_refused(way, tmp_path):
    features = Features({"question": Value("string"), "answer": ClassLabel(names=["no", "yes"])})
    table = Dataset.from_dict({"question": ["q"], "answer": [1]}, features=features)
    path = tmp_path / ("rows.parquet" if way == "parquet" else "saved")
    table.to_parquet(path) if way == "parquet" else table.save_to_disk(path)
    with pytest.raises(ValueError, match=r"--data.task.answer_column: row 0 .*a ClassLabel"):
        DatasetTask(str(path)).prepare()


def test_a_last_turn_of_the_assistants_is_taken_off(tmp_path, caplog):
    turns = [*chat("2+2?"), {"role": "assistant", "content": "4"}]
    with caplog.at_level(logging.INFO):
        [problem] = problems(DatasetTask(write(tmp_path, [{"question": turns, "answer": "4"}])))
    assert (problem.question, problem.metadata["messages"]) == ("2+2?", chat("2+2?"))
    assert "1 of 1 chats end with a turn of the assistant's" in caplog.text


def test_content_in_parts_is_text(tmp_path):
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    turns = [{"role": "user", "content": parts}]
    [problem] = problems(DatasetTask(write(tmp_path, [{"question": turns, "answer": "4"}])))
    assert problem.metadata["messages"] == chat("2+2?")


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"role": "user", "content": None}], "user turn has no content"),
        (
            [{"role": "user", "content": [{"type": "image", "image": "x"}]}],
            "parts that are not text",
        ),
        ([{"role": "user", "content": {"a": 1}}], "user turn has a dict"),
        ([{"role": "assistant", "content": "4"}], "without a last turn of the user's"),
        ([{"role": "system", "content": "Be brief."}], "without a last turn of the user's"),
        ([{"role": ["user"], "content": "x"}], "for a role"),
    ],
)
def test_chats_that_cannot_be_asked_are_refused(turns, said, tmp_path):
    path = write(tmp_path, [{"question": turns, "answer": "4"}])
    with pytest.raises(ValueError, match=rf"--data.task.question_column: row 0 .*{said}"):
        DatasetTask(path).prepare()
