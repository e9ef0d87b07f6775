"""From a row as published to a problem as rlsgd reads it. Pure functions, one for each layout.

Every problem has `id`, `question` and `answer`; one of code has `tests`, `entry_point` and `setup`
besides, all of them always, so that files of different benchmarks can be read as one table.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlsgd.rewards.extract import boxed

Row = dict[str, Any]
# A program is run anew for every test, and some problems come with hundreds.
MOST_TESTS = 10
BY_TESTS = "(checked by its tests)"  # there is no program on record


@dataclass(frozen=True)
class Dropped:
    """No problem can be made of the row."""

    reason: str


def numina_math(row: dict[str, Any]) -> Row | Dropped:
    r"""The answer is what the last `\boxed{}` of the solution holds; proofs have none."""
    answer = boxed(row["solution"])
    if not answer:
        return Dropped("no boxed answer")
    if not row["problem"].strip():
        return Dropped("no question")
    return {"id": row["source"], "question": row["problem"].strip(), "answer": answer}


def plain_math(question: str, answer: str, identity: str) -> Callable[[dict[str, Any]], Row]:
    """A format that has question and answer in columns of their own."""

    def convert(row: dict[str, Any]) -> Row:
        return {
            "id": str(row[identity]),
            "question": row[question].strip(),
            "answer": number_text(row[answer]),
        }

    return convert


def number_text(value: Any) -> str:
    """An answer as text: whole numbers without a decimal point or leading zeros (025 is 25)."""
    text = str(value).strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(int(text)) if re.fullmatch(r"-?[0-9]+", text) else text


def olympiad_bench(row: dict[str, Any]) -> Row:
    """Several final answers are one list; what several problems share goes before the question."""
    parts = [row["context"] or "", row["question"]]
    answers = [answer.strip().strip("$").strip() for answer in row["final_answer"]]
    return {
        "id": str(row["id"]),
        "question": "\n\n".join(part.strip() for part in parts if part.strip()),
        "answer": f"${', '.join(answers)}$",
    }


def gpqa(row: dict[str, Any]) -> Row:
    """Four choices in an order that the question's text decides; the answer is the letter."""
    question = row["Question"].strip()
    right = row["Correct Answer"].strip()
    choices = [right, *(row[f"Incorrect Answer {n}"].strip() for n in (1, 2, 3))]
    random.Random(text_hash(question)).shuffle(choices)
    lines = [f"({letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
    return {
        "id": text_hash(question)[:12],
        "question": "\n".join([question, "", *lines, "", "Answer with the letter of the choice."]),
        "answer": "ABCD"[choices.index(right)],
    }


def prime_code(row: dict[str, Any]) -> Row | Dropped:
    """The last message is the question; tests give a program an input and expect an output.

    The system message, which lays down a format of reasoning, is left out: models that think have
    their own. Problems whose tests call a function are dropped.
    """
    question = row["prompt"][-1]["content"].strip()
    try:
        tests = json.loads(row["reward_model"]["ground_truth"])
        inputs, outputs = tests["inputs"], tests["outputs"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return Dropped("tests cannot be read")
    if tests.get("fn_name"):
        return Dropped("tests call a function")
    if not inputs or len(inputs) != len(outputs):
        return Dropped("tests cannot be read")
    kept = [
        {"input": _lines(given), "output": _lines(expected)}
        for given, expected in zip(inputs[:MOST_TESTS], outputs[:MOST_TESTS], strict=True)
    ]
    if any(None in case.values() for case in kept):
        return Dropped("tests are no text")
    if not question:
        return Dropped("no question")
    return _code(row["data_source"], question, BY_TESTS, tests=json.dumps(kept))


def human_eval(row: dict[str, Any]) -> Row:
    """A whole program is asked for; tests may use what the given code defines."""
    question = (
        "Complete the following Python function. Give the whole program, imports and helpers "
        f"included, in one block of Python.\n\n```python\n{row['prompt'].strip()}\n```"
    )
    return _code(
        row["task_id"],
        question,
        row["prompt"] + row["canonical_solution"],
        tests=[row["test"]],
        entry_point=row["entry_point"],
        setup=row["prompt"],
    )


def mbpp(row: dict[str, Any]) -> Row:
    """The question shows the tests, which name the function and its arguments."""
    question = _with_tests(row["text"], row["test_list"])
    setup = row["test_setup_code"] or ""
    return _code(row["task_id"], question, row["code"], tests=row["test_list"], setup=setup)


def mbpp_plus(row: dict[str, Any]) -> Row:
    """The question shows the tests of MBPP; a program is judged by the more numerous ones."""
    question = _with_tests(row["prompt"], row["test_list"])
    test, setup = without_numpy(row["test"])
    setup = "\n".join([*row["test_imports"], setup])
    return _code(row["task_id"], question, row["code"], tests=[test], setup=setup)


# What the tests of MBPP+ use of numpy. Their sandbox has the standard library alone, and what
# comes to them from a program is plain numbers and lists.
NUMPY_STAND_IN = """
class np:
    ndarray = ()
    float32 = float64 = float

    @staticmethod
    def allclose(a, b, rtol=1e-5, atol=1e-8):
        if isinstance(b, (list, tuple)):
            pairs = zip(a, b)
            return len(a) == len(b) and all(np.allclose(*p, rtol=rtol, atol=atol) for p in pairs)
        return a == b or abs(a - b) <= atol + rtol * abs(b)
"""
_NUMPY_IMPORT = re.compile(r"^import numpy as np[ \t]*\n", re.MULTILINE)


def without_numpy(test: str) -> tuple[str, str]:
    """Test code without its import of numpy, and the setup that stands in for it.

    A test that uses more of numpy than the stand-in has keeps its import.
    """
    used = set(re.findall(r"\bnp\.(\w+)", test))
    if not used <= {"ndarray", "float32", "float64", "allclose"} or not _NUMPY_IMPORT.search(test):
        return test, ""
    return _NUMPY_IMPORT.sub("", test), NUMPY_STAND_IN


def text_hash(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _code(
    identity: Any,
    question: str,
    answer: str,
    *,
    tests: str | list[str],
    entry_point: str = "",
    setup: str = "",
) -> Row:
    row = {"id": str(identity), "question": question, "answer": answer}
    return {**row, "tests": tests, "entry_point": entry_point, "setup": setup}


def _with_tests(text: str, tests: list[str]) -> str:
    shown = "\n".join(tests)
    return f"{text.strip()}\n\nYour program must pass these tests:\n\n```python\n{shown}\n```"


def _lines(value: Any) -> str | None:
    """Text, or a list of its lines; None for anything else."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    return value if isinstance(value, str) else None
