"""Data sets in each publisher's layout: read, checked, cleaned, and read again by a task."""

import hashlib
import json

import pytest

from rlsgd.cli.main import main
from rlsgd.core.problems import Problem
from rlsgd.data.tasks import DatasetTask
from rlsgd.preparation.formats import Dropped, gpqa, number_text, prime_code, without_numpy
from rlsgd.preparation.overlap import Overlap
from rlsgd.preparation.prepare import Options, prepare
from rlsgd.preparation.prepared import prepared_files, prepared_folder, read_rows
from rlsgd.preparation.reading import content_sha256, copied_files
from rlsgd.preparation.sources import SOURCES, SUITES
from rlsgd.preparation.verification import Verifier
from rlsgd.rewards import StdioTests
from rlsgd.rewards.scorer import Scorer
from tests.helpers.small_data import BOXES, NUMPY_TEST, ROWS, prepare_copy, write_copy

MATH, CODE = SUITES["math-benchmarks"], SUITES["code-benchmarks"]


@pytest.fixture(autouse=True)
def cache(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RLSGD_CACHE", str(tmp_path / "cache"))
    place = tmp_path_factory.getbasetemp() / "datasets-cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(place))
    return tmp_path / "cache"


# ---- reading


@pytest.mark.parametrize("name", [*MATH, *CODE])
def test_a_benchmark_keeps_every_row_and_its_order(name, tmp_path):
    manifest = prepare_copy(name, tmp_path)
    rows = read_rows(name)
    assert manifest["rows"] == manifest["source_rows"] == len(rows) == len(ROWS[name])
    own = {"benchmark", "id", "question", "answer"}
    more = {"tests", "entry_point", "setup"} if name in CODE else set()
    assert all(row.keys() == own | more and row["benchmark"] == name for row in rows)


def test_answers_by_hand(tmp_path):
    for name in MATH:
        prepare_copy(name, tmp_path)
    answers = {name: [row["answer"] for row in read_rows(name)] for name in MATH}
    letter = answers.pop("gpqa-diamond")[0]
    assert answers == {
        "math500": ["77", "\\frac{1}{2}"],
        "aime24": ["7"],
        "aime25": ["204"],
        "amc": ["12"],
        "olympiadbench": ["$-2,2$", "$4, 9$"],
    }
    [row] = read_rows("gpqa-diamond")
    assert f"({letter}) argon" in row["question"]
    assert read_rows("olympiadbench")[1]["question"] == "Let $f(x)=x^2$.\n\nFind $f(2)$ and $f(3)$."


def test_whole_numbers_as_text():
    assert [number_text(v) for v in ("025", "-08", 142.0, 0.5, 7, "3\\pi")] == [
        *("25", "-8", "142", "0.5", "7", "3\\pi")
    ]


def test_choices_are_in_an_order_of_the_question_alone():
    def row(question):
        wrong = {f"Incorrect Answer {n}": f"w{n}" for n in (1, 2, 3)}
        return {"Question": question, "Correct Answer": "r", **wrong}

    rows = [gpqa(row(f"Question {n}")) for n in range(40)]
    assert {r["answer"] for r in rows} == set("ABCD")
    assert all(f"({r['answer']}) r\n" in r["question"] for r in rows)
    assert rows == [gpqa(row(f"Question {n}")) for n in range(40)]


def test_one_checksum_for_every_format_and_another_for_other_content(tmp_path):
    found = set()
    for suffix in (".jsonl", ".parquet", ".csv"):
        copy = write_copy("gpqa-diamond", tmp_path, suffix)
        options = Options(local=copy, rows=1)
        found.add(prepare(SOURCES["gpqa-diamond"], options)["source_sha256"])
    [sha256] = found
    # the definition: each row as JSON with its columns sorted by name, one a line
    line = json.dumps(dict(sorted(ROWS["gpqa-diamond"][0].items()))) + "\n"
    assert sha256 == hashlib.sha256(line.encode()).hexdigest()
    assert content_sha256([{"a": 1}], ["a"]) != content_sha256([{"a": 2}], ["a"])


def test_a_folder_is_read_by_split_and_configuration(tmp_path):
    for file in ("main/train-0.parquet", "main/test-0.parquet", "full/test-0.parquet"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    found = copied_files(SOURCES["mbpp"], tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in found] == ["full/test-0.parquet"]


# ---- refusals


def test_another_number_of_rows_is_refused_unless_it_is_accepted(tmp_path):
    copy = write_copy("math500", tmp_path)
    with pytest.raises(ValueError, match=r"math500: 2 rows were read; expected by .* 500"):
        prepare(SOURCES["math500"], Options(local=copy))
    with pytest.raises(ValueError, match="expected --rows 3"):
        prepare(SOURCES["math500"], Options(local=copy, rows=3))
    assert not prepared_folder("math500").exists()
    assert prepare(SOURCES["math500"], Options(local=copy, rows=2))["rows"] == 2


def test_another_checksum_is_refused(tmp_path):
    copy = write_copy("aime25", tmp_path)
    sha256 = prepare(SOURCES["aime25"], Options(local=copy, rows=1))["source_sha256"]
    prepare(SOURCES["aime25"], Options(local=copy, rows=1, sha256=sha256.upper()))
    copy.write_text(copy.read_text().replace("104", "105"))
    with pytest.raises(ValueError, match=rf"SHA-256 is \w+, not {sha256} \(--sha256\)"):
        prepare(SOURCES["aime25"], Options(local=copy, rows=1, sha256=sha256))


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "p", "id": "1"}\n')
    with pytest.raises(ValueError, match=r"no column 'answer'; its columns are problem, id"):
        prepare(SOURCES["aime25"], Options(local=path, rows=1))


def test_without_the_hub_a_copy_is_asked_for():
    with pytest.raises(ValueError, match=r"aime25: math-ai/aime25, .* not be fetched.*--from"):
        prepare(SOURCES["aime25"], Options())


def test_what_is_not_prepared_or_has_changed_is_refused_by_the_task(tmp_path):
    with pytest.raises(
        ValueError, match=r"--data.task.path: aime25 .*Run: rlsgd data prepare aime"
    ):
        DatasetTask("aime25")
    prepare_copy("aime25", tmp_path)
    path = prepared_folder("aime25") / "rows.jsonl"
    path.write_text(path.read_text().replace("204", "205"))
    with pytest.raises(ValueError, match=r"--data.task.path: .* is not the file that was prepared"):
        DatasetTask("aime25")
    with pytest.raises(ValueError, match="math500 is not prepared yet"):
        prepared_files("math-benchmarks")


# ---- training sets


def prepare_benchmarks(names, folder):
    for name in names:
        prepare_copy(name, folder)


def test_a_training_set_is_cleaned_counted_and_sampled(tmp_path):
    prepare_benchmarks(MATH, tmp_path)
    tokens = {"tokenizers": ["embedded"], "max_question_tokens": 60}
    manifest = prepare_copy("numina-math", tmp_path, sample=8, **tokens)
    assert manifest["dropped"] == {
        "no boxed answer": 1,
        "same question as another row": 1,
        "in a benchmark": 1,
        "too many tokens": 1,
        "answer does not equal itself": 1,
    }
    overlap = manifest["overlap"]
    assert overlap["removed"] == {**dict.fromkeys(MATH, 0), "math500": 1}
    assert overlap["problems_found"] == {**dict.fromkeys(MATH, 0), "math500": 1}
    assert overlap["examples"] == {"math500": [" ".join(BOXES.lower().split()[:13])]}
    rows = sorted(read_rows("numina-math"), key=lambda row: int(row["answer"]))
    assert [row["question"] for row in rows] == [f"What is {n} plus {n}?" for n in range(1, 9)]
    assert [row["answer"] for row in rows] == [str(2 * n) for n in range(1, 9)]
    assert rows[0]["row"] in (0, 10) and [row["row"] for row in rows[1:]] == list(range(1, 8))


def test_the_sample_is_a_function_of_the_seed(tmp_path):
    def sample(**options):
        own = {"max_question_tokens": 0, "against": [], "sample": 4, **options}
        prepare_copy("prime-code", tmp_path, **own)
        return [row["row"] for row in read_rows("prime-code")]

    first = sample(seed=1)
    assert first == sample(seed=1) == sample(seed=1, sample=6)[:4]
    assert first != sample(seed=2)


def test_more_than_there_is_cannot_be_sampled(tmp_path):
    with pytest.raises(ValueError, match=r"10 problems are left of 13 rows, and 11 are wanted"):
        prepare_copy("numina-math", tmp_path, against=[], max_question_tokens=0, sample=11)
    assert not prepared_folder("numina-math").exists()


def test_a_training_set_needs_tokenizers_and_benchmarks(tmp_path):
    with pytest.raises(ValueError, match="--tokenizer is missing: numina-math"):
        prepare_copy("numina-math", tmp_path)
    with pytest.raises(ValueError, match=r"--against: .* math500 is not prepared yet"):
        prepare_copy("numina-math", tmp_path, max_question_tokens=0)


def test_programs_with_tests_of_input_and_output_are_kept(tmp_path):
    manifest = prepare_copy("prime-code", tmp_path, against=[], max_question_tokens=0)
    assert manifest["source_rows"] == 11 and manifest["rows"] == 7
    assert manifest["dropped"] == {
        "tests call a function": 1,
        "tests cannot be read": 1,
        "tests are no text": 1,
    }
    [joined] = [row for row in read_rows("prime-code") if "joined" in row["question"]]
    assert joined["question"] == "Print both lines joined."
    assert json.loads(joined["tests"]) == [{"input": "a\nb", "output": "ab"}]


def test_of_many_tests_the_first_are_kept():
    truth = json.dumps({"inputs": [str(n) for n in range(30)], "outputs": ["x"] * 30})
    row = {"data_source": "taco", "prompt": [{"content": "q"}]}
    kept = prime_code({**row, "reward_model": {"ground_truth": truth}})
    assert [case["input"] for case in json.loads(kept["tests"])] == [str(n) for n in range(10)]
    truth = json.dumps({"inputs": ["1"], "outputs": []})
    assert isinstance(prime_code({**row, "reward_model": {"ground_truth": truth}}), Dropped)


# ---- overlap


def test_runs_of_words_by_hand():
    overlap = Overlap({"a": ["one two three four five six"], "b": ["x y z", "Q w e r t"]}, size=5)
    assert not overlap.overlaps("one two three four, six five")
    assert overlap.overlaps("Zero ONE, two: $three$ four -- five!")
    assert overlap.overlaps("two three four five six q w e r t y")
    assert not overlap.overlaps("x y z"), "three words are in every text"
    assert overlap.report.removed == {"a": 2, "b": 1}
    assert overlap.report.found == {"a": {0}, "b": {1}}
    assert overlap.report.examples["b"] == ["q w e r t"]


def test_a_question_shorter_than_a_run_is_looked_for_whole():
    overlap = Overlap({"a": ["find the sum of all primes"]}, size=13)
    assert overlap.overlaps("Please find the sum of all primes below nine.")
    assert not overlap.overlaps("find the sum of all")
    with pytest.raises(ValueError, match="--overlap-words 4"):
        Overlap({}, size=4)


# ---- tasks and rewards


def test_a_task_reads_what_was_prepared_by_name(tmp_path):
    prepare_benchmarks(MATH, tmp_path)
    prepare_copy("prime-code", tmp_path, against=[], max_question_tokens=0)
    task = DatasetTask("prime-code", test_path="math-benchmarks", held_out_fraction=0)
    expected = [row for name in MATH for row in read_rows(name)]
    found = task.test_problems(99)
    assert [(p.question, p.answer) for p in found] == [
        (r["question"], r["answer"]) for r in expected
    ]
    names = [problem.metadata["columns"]["benchmark"] for problem in found]
    assert names == [name for name in MATH for _ in ROWS[name]]
    assert len(task.train_problems(seed=0, epoch=0, count=7)) == 7


def test_answers_of_mathematics_get_full_marks_and_others_do_not(tmp_path):
    prepare_benchmarks(MATH, tmp_path)
    rows = [row for name in MATH for row in read_rows(name)]
    with Verifier("math") as verifier:
        assert verifier.passes(rows) == [True] * len(rows)
        problems = [Problem(row["question"], row["answer"]) for row in rows]
        wrong = verifier.scorer.score(["\\boxed{10101}"] * len(rows), problems)
    assert wrong.rewards == [0.0] * len(rows) and not any(wrong.failures)


def test_programs_are_judged_by_input_and_output(tmp_path):
    prepare_copy("prime-code", tmp_path, against=[], max_question_tokens=0, sample=7)
    task = DatasetTask("prime-code", held_out_fraction=0)
    problems = task.train_problems(seed=0, epoch=0, count=7)
    [problem] = [p for p in problems if p.question.endswith("plus 3.")]
    with Scorer(StdioTests(seconds=20.0), timeout_seconds=40.0) as scorer:
        programs = [f"```python\nprint(int(input()) + {n})\n```" for n in (3, 4)]
        assert scorer.score(programs, [problem] * 2).rewards == [1.0, 0.0]


def test_benchmarks_of_code_judge_the_programs_on_record(tmp_path):
    for name in CODE:
        assert prepare_copy(name, tmp_path, verify=True)["unverified"] == [], name


def test_wrong_answers_on_record_are_named(tmp_path, capsys):
    rows = [{**ROWS["mbpp"][0], "code": "def twice(x):\n    return x"}]
    path = tmp_path / "mbpp.jsonl"
    path.write_text(json.dumps(rows[0]) + "\n")
    command = ["data", "prepare", "mbpp", "--from", str(path), "--rows", "1", "--verify"]
    assert main(command) == 0
    assert "do not get full marks: 1: 11" in capsys.readouterr().out


def test_the_stand_in_for_numpy_compares_as_numpy_does():
    numpy = pytest.importorskip("numpy")
    test, setup = without_numpy(NUMPY_TEST)
    assert "import numpy" not in test
    names: dict = {}
    exec(setup, names)
    allclose = names["np"].allclose
    pairs = [(1.0, 1.0 + 5e-7), (1.0, 1.01), ([1, 2.0], [1.0, 2]), ([0.0], [2e-6]), (1e9, 1e9 + 1)]
    for a, b in [*pairs, (float("inf"), float("inf")), (float("inf"), 1.0)]:
        expected = bool(numpy.allclose(a, b, rtol=1e-7, atol=1e-6))
        assert allclose(a, b, rtol=1e-7, atol=1e-6) == expected, (a, b)
    assert without_numpy("import numpy as np\nnp.zeros(3)\n") == (
        "import numpy as np\nnp.zeros(3)\n",
        "",
    )


# ---- the command


def test_the_list_says_what_is_known_and_what_is_prepared(tmp_path, capsys):
    prepare_copy("aime25", tmp_path)
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert "859,494" in said and "not known" in said and "1 problems" in said
    assert all(name in said for name in (*SOURCES, *SUITES))


def test_a_suite_is_prepared_from_a_folder_of_copies(tmp_path, capsys):
    for name in MATH:
        write_copy(name, tmp_path / "copies")
    # counts of the real ones are known, so these few rows are refused
    assert main(["data", "prepare", "math-benchmarks", "--from", str(tmp_path / "copies")]) == 2
    assert "rlsgd data: error: math500: 2 rows were read" in capsys.readouterr().err
    (tmp_path / "copies" / "amc.jsonl").unlink()
    assert main(["data", "prepare", "amc", "--from", str(tmp_path / "copies" / "no.jsonl")]) == 2
    assert "is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "NAME nothing is no data set"),
        (["math-benchmarks", "--rows", "3"], "--rows, --sha256 and --name are for one data set"),
        (["aime25", "--name", "math500"], "--name math500"),
        (["aime25", "--name", "a/b"], "--name a/b"),
        (["numina-math", "--max-question-tokens", "-1"], "--max-question-tokens must not be"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    assert main(["data", "prepare", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_was_checked_is_printed(tmp_path, capsys):
    prepare_benchmarks(MATH, tmp_path)
    copy = write_copy("numina-math", tmp_path)
    arguments = ["--rows", "13", "--sample", "5", "--max-question-tokens", "0"]
    assert main(["data", "prepare", "numina-math", "--from", str(copy), *arguments]) == 0
    said = capsys.readouterr().out
    manifest = json.loads((prepared_folder("numina-math") / "manifest.json").read_text())
    assert "numina-math: 5 problems; licence: Apache-2.0" in said
    assert "13 rows, expected: 859,494 (the data set's card)" in said
    assert f"{manifest['source_sha256']}; none is published, to pin it add --sha256" in said
    assert "compared by runs of 13 words with" in said
