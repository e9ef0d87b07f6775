import json
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from rlsgd.data.tasks import DatasetTask


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(count, start=0):
    return [{"question": f"q{i}", "answer": f"a{i}"} for i in range(start, start + count)]


def questions(problems):
    return [problem.question for problem in problems]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "rows.jsonl", numbered(20))


@pytest.fixture(scope="module")
def task(path):
    return DatasetTask(path)


def test_every_pass_sees_each_training_row_once_in_a_new_order(task):
    # --- 20 rows, 1 + 1 held out: 18 rows; 4 epochs of 9 are two passes ---
    epochs = [questions(task.train_problems(seed=1, epoch=epoch, count=9)) for epoch in range(4)]
    first, second = epochs[0] + epochs[1], epochs[2] + epochs[3]
    assert len(set(first)) == 18
    assert set(first) == set(second)
    assert first != second


def test_epochs_walk_on_across_the_ends_of_passes(task):
    # --- 3 x 12 = 2 x 18 rows: the middle epoch spans two passes ---
    by_twelve = [task.train_problems(seed=1, epoch=epoch, count=12) for epoch in range(3)]
    by_nine = [task.train_problems(seed=1, epoch=epoch, count=9) for epoch in range(4)]
    assert list(chain(*by_twelve)) == list(chain(*by_nine))


def test_order_is_a_function_of_the_seed(task, path):
    train = task.train_problems(seed=1, epoch=3, count=5)
    assert DatasetTask(path).train_problems(seed=1, epoch=3, count=5) == train
    assert task.train_problems(seed=2, epoch=3, count=5) != train


def test_held_out_questions_are_in_one_set_only(path):
    task = DatasetTask(path, held_out_fraction=0.5)
    validation, test = questions(task.validation_problems(99)), questions(task.test_problems(99))
    train = set(questions(task.train_problems(seed=0, epoch=0, count=10)))
    assert (len(validation), len(test), len(train)) == (5, 5, 10)
    assert len({*validation, *test, *train}) == 20
    assert questions(task.validation_problems(2)) == validation[:2]


def test_repeated_questions_stay_together(tmp_path):
    rows = [{"question": f"q{i % 4}", "answer": str(i)} for i in range(16)]
    task = DatasetTask(write(tmp_path / "rows.jsonl", rows), held_out_fraction=0.5)
    train = questions(task.train_problems(seed=0, epoch=0, count=8))
    held_out = questions(task.validation_problems(9)) + questions(task.test_problems(9))
    assert len(held_out) == 2
    assert sorted(train) == sorted([q for q in ("q0", "q1", "q2", "q3") if q not in held_out] * 4)


def test_own_validation_and_test_files_win_over_training(tmp_path, path):
    task = DatasetTask(
        path,
        validation_path=write(tmp_path / "validation.jsonl", numbered(6, start=17)),
        test_path=write(tmp_path / "test.jsonl", numbered(8, start=15)),
    )
    assert questions(task.validation_problems(99)) == [f"q{i}" for i in range(17, 23)]
    assert questions(task.test_problems(99)) == ["q15", "q16"]  # the others are in validation
    train = questions(task.train_problems(seed=0, epoch=0, count=15))
    assert sorted(train) == sorted(f"q{i}" for i in range(15))


def test_formats_folders_and_splits(tmp_path):
    rows = numbered(8)
    table = Dataset.from_list(rows)
    table.to_csv(tmp_path / "rows.csv")
    table.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    DatasetDict({"train": table, "dev": table.select([1])}).save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.jsonl", rows)
    write(tmp_path / "folder" / "test.jsonl", numbered(3, start=50))
    for name in ("rows.csv", "rows.parquet", "rows.json", "saved", "folder"):
        task = DatasetTask(str(tmp_path / name), held_out_fraction=0)
        train = task.train_problems(seed=0, epoch=0, count=8)
        assert sorted((p.question, p.answer) for p in train) == [
            (f"q{i}", f"a{i}") for i in range(8)
        ]
    saved = DatasetTask(str(tmp_path / "saved"), validation_split="dev")
    assert questions(saved.validation_problems(9)) == ["q1"]
    folder = DatasetTask(str(tmp_path / "folder"), test_split="test")
    assert questions(folder.test_problems(9)) == ["q50", "q51", "q52"]
    half = DatasetTask(str(tmp_path / "rows.csv"), split="train[:50%]", held_out_fraction=0)
    assert set(questions(half.train_problems(seed=0, epoch=0, count=4))) == {"q0", "q1", "q2", "q3"}


def test_columns_are_mapped_and_the_others_kept(tmp_path):
    rows = [{"problem": "p", "solution": 7, "level": "hard"}]
    task = DatasetTask(
        write(tmp_path / "rows.jsonl", rows),
        question_column="problem",
        answer_column="solution",
        held_out_fraction=0,
    )
    [problem] = task.train_problems(seed=0, epoch=0, count=1)
    assert (problem.question, problem.answer) == ("p", "7")
    assert problem.metadata == {"columns": {"level": "hard"}}


def test_chats_are_kept_as_messages(tmp_path):
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"}]
    rows = [{"question": chat, "answer": "4"}]
    task = DatasetTask(write(tmp_path / "rows.jsonl", rows), held_out_fraction=0)
    [problem] = task.train_problems(seed=0, epoch=0, count=1)
    assert problem.metadata["messages"] == chat
    assert problem.question == "be brief\n\n2+2?"


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"path": "no/such.jsonl"}, "--data.task.path"),
        ({"path": "./nothing"}, "--data.task.path"),
        ({"path": "{path}", "validation_path": "gone.csv"}, "--data.task.validation_path"),
        ({"path": "{path}", "test_path": "/gone"}, "--data.task.test_path"),
    ],
)
def test_missing_files_are_named_at_construction(options, flag, path):
    options = {key: value.format(path=path) for key, value in options.items()}
    with pytest.raises(ValueError, match=f"{flag}: there is no file or folder"):
        DatasetTask(**options)


def test_unknown_file_type_is_named(tmp_path):
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(ValueError, match=r"--data.task.path: .*must end in one of .jsonl"):
        DatasetTask(str(tmp_path / "rows.txt"))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [{"q": "a", "answer": "b", "level": 1}],
            {},
            r"--data.task.question_column: .*'question'; its columns are q, answer, level",
        ),
        ([{"question": "a", "b": "c"}], {}, r"--data.task.answer_column: .*are question, b"),
        (
            [*numbered(2), {"question": "x", "answer": None}],
            {},
            r"--data.task.answer_column: row 2 \(counted from 0\)",
        ),
        ([{"question": " ", "answer": "b"}], {}, r"--data.task.question_column: row 0"),
        ([{"question": ["x"], "answer": "b"}], {}, r"question_column: row 0 .*\{role, content\}"),
        (numbered(3), {"split": "dev"}, r"--data.task.path: .*\(--data.task.split\)"),
        (numbered(2), {}, r"--data.task.path: nothing is left to train on: all 2"),
    ],
)
def test_unusable_rows_name_the_flag(tmp_path, rows, options, message):
    task = DatasetTask(write(tmp_path / "rows.jsonl", rows), **options)
    with pytest.raises(ValueError, match=message):
        task.prepare()


def test_empty_data_is_an_error(tmp_path):
    Dataset.from_list(numbered(1)).select([]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"--data.task.path: .*has it rows\?"):
        DatasetTask(str(tmp_path / "saved")).prepare()
    (tmp_path / "rows.csv").write_text("question,answer\n")
    with pytest.raises(ValueError, match=r"--data.task.path: .*rows.csv.*has it rows\?"):
        DatasetTask(str(tmp_path / "rows.csv")).prepare()
    with pytest.raises(ValueError, match=r"--data.task.path: the file .* is empty"):
        DatasetTask(write(tmp_path / "rows.jsonl", []))


def test_nothing_held_out_is_an_error_only_when_asked_for(path):
    task = DatasetTask(path, held_out_fraction=0)
    assert task.validation_problems(0) == []
    with pytest.raises(ValueError, match=r"--data.task.validation_path: the validation set is emp"):
        task.validation_problems(1)
    assert task.default_reward() is None
    with pytest.raises(ValueError, match=r"--data.task.held_out_fraction must be at least 0"):
        DatasetTask(path, held_out_fraction=1.0)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.csv", "question,answer,answer\nq,1,2\n", "'answer' is there twice"),
        (
            "a.jsonl",
            '{"question": "q", "answer": "1", "answer": "2"}\n',
            "line 1: 'answer' is there",
        ),
        ("a.json", '[{"question": "q", "answer": {"a": 1, "a": 2}}]', "'a' is there twice"),
    ],
)
def test_a_name_that_stands_twice_is_refused(name, text, reason, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"--data.task.path: cannot load .*{reason}"):
        DatasetTask(str(tmp_path / name)).rows("train")


def test_columns_of_one_name_in_parquet_are_refused(tmp_path):
    table = pa.table([["q"], ["1"], ["2"]], names=["question", "answer", "answer"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"--data.task.path: cannot load "):
        DatasetTask(str(tmp_path / "a.parquet")).rows("train")


def test_a_folder_of_two_kinds_is_refused_and_shards_of_one_are_read(tmp_path):
    write(tmp_path / "rows-0.jsonl", numbered(2))
    write(tmp_path / "rows-1.jsonl", numbered(2, start=2))
    task = DatasetTask(str(tmp_path), held_out_fraction=0.0)
    assert sorted(questions(task.rows("train"))) == ["q0", "q1", "q2", "q3"]
    pq.write_table(pa.table({"question": ["q"], "answer": ["1"]}), tmp_path / "more.parquet")
    with pytest.raises(ValueError, match=r"the folder has \.jsonl and \.parquet files"):
        DatasetTask(str(tmp_path)).rows("train")


@pytest.mark.parametrize("dumps", [json.dumps, repr])
def test_a_chat_that_is_written_as_text_is_refused(dumps, tmp_path):
    chat = dumps([{"role": "user", "content": "q"}])
    path = write(tmp_path / "a.jsonl", [{"question": chat, "answer": "1"}])
    with pytest.raises(ValueError, match=r"row 0 .* is a chat written as text; make it a list of"):
        DatasetTask(path).rows("train")
