"""A few rows of our own in the layout of each data set that `rlsgd data` prepares."""

import json
from pathlib import Path

from datasets import Dataset

from rlsgd.preparation.prepare import Options, prepare
from rlsgd.preparation.sources import SOURCES, SUITES

BOXES = "A carpenter has seven red boxes and puts eleven blue nails into each one of them today"
SQUARE = "The side of a square garden grows by three metres and its area by fifty one square metres"

ADD_PROMPT = (
    "from typing import List\n\n\ndef half(x: int) -> int:\n    return x // 2\n\n\n"
    'def total_half(values: List[int]) -> int:\n    """The sum of the halves of all values."""\n'
)
ADD_TESTS = (
    "def check(candidate):\n    assert candidate([2, 4]) == half(2) + half(4)\n"
    "    assert candidate([]) == 0\n"
)
JOIN_PROMPT = 'def joined(words: list) -> str:\n    """Words with a dash between them."""\n'
NUMPY_TEST = """\
import numpy as np
from math import inf

def is_floats(x):
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp

inputs = [[[1, 2]], [[3]], [[0.1, 0.2]]]
results = [1.5, 3.0, 0.15]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(middle(*inp), exp, 0)
"""
MIDDLE = "def middle(values):\n    return sum(values) / len(values)\n"


def numina(problem, solution, source="olympiads"):
    messages = [
        {"role": "user", "content": problem},
        {"role": "assistant", "content": solution},
    ]
    return {"source": source, "problem": problem, "solution": solution, "messages": messages}


def eurus(content, tests, ability="code"):
    return {
        "data_source": "codecontests" if ability == "code" else "numina_olympiads",
        "prompt": [
            {"role": "system", "content": "Act in steps."},
            {"role": "user", "content": content},
        ],
        "ability": ability,
        "reward_model": {"ground_truth": tests, "style": "rule"},
        "extra_info": {"index": 0, "split": "dummy"},
    }


def human_eval(number, prompt, solution, test, entry_point):
    return {
        "task_id": f"Ours/{number}",
        "prompt": prompt,
        "canonical_solution": solution,
        "test": test,
        "entry_point": entry_point,
    }


HUMAN_EVAL = [
    human_eval(0, ADD_PROMPT, "    return sum(half(v) for v in values)\n", ADD_TESTS, "total_half"),
    human_eval(
        1,
        JOIN_PROMPT,
        "    return '-'.join(words)\n",
        "def check(candidate):\n    assert candidate(['a', 'b']) == 'a-b'\n",
        "joined",
    ),
]
ROWS = {
    # eight that are fit, and one of each kind that is not
    "numina-math": [
        *(
            numina(f"What is {n} plus {n}?", f"It is $\\boxed{{{2 * n}}}$.", "cn_k12")
            for n in range(1, 9)
        ),
        numina(f"{BOXES}. How many nails?", "So $\\boxed{77}$."),
        numina("Show that two is even.", "It is twice one."),
        numina("What is 1 plus 1?", "Again $\\boxed{2}$."),
        numina("Long. " + "word " * 120, "Well, $\\boxed{5}$."),
        numina("What does nothing mean?", "It is $\\boxed{\\text{}}$."),
    ],
    "prime-code": [
        *(
            eurus(
                f"Read a number and print it plus {n}.",
                json.dumps({"inputs": ["1\n", "5\n"], "outputs": [f"{1 + n}\n", f"{5 + n}\n"]}),
            )
            for n in range(6)
        ),
        eurus(
            "Print both lines joined.",
            json.dumps({"inputs": [["a", "b"]], "outputs": ["ab"]}),
        ),
        eurus("Function please.", json.dumps({"fn_name": "f", "inputs": [[1]], "outputs": [2]})),
        eurus("Broken.", "no json"),
        eurus("Numbers.", json.dumps({"inputs": [1], "outputs": [2]})),
        eurus("What is 2 plus 2?", "4", ability="math"),
    ],
    "math500": [
        {"problem": f"{BOXES}. How many nails are used?", "answer": "77", "unique_id": "ours/1"},
        {"problem": "Simplify $\\frac{2}{4}$.", "answer": "\\frac{1}{2}", "unique_id": "ours/2"},
    ],
    "aime24": [{"id": 60, "problem": f"{SQUARE}. Find the old side.", "answer": "007"}],
    "aime25": [{"id": "0", "problem": "Find the sum of 100 and 104.", "answer": "204"}],
    "amc": [{"id": 3, "problem": "How many edges has a cube?", "answer": 12.0}],
    "olympiadbench": [
        {
            "id": 9,
            "question": "Solve $x^2=4$.",
            "final_answer": ["$-2,2$"],
            "context": None,
        },
        {
            "id": 10,
            "question": "Find $f(2)$ and $f(3)$.",
            "final_answer": ["4", "$9$"],
            "context": "Let $f(x)=x^2$.",
        },
    ],
    "gpqa-diamond": [
        {
            "Question": "Which of these is a noble gas?",
            "Correct Answer": "argon",
            "Incorrect Answer 1": "oxygen",
            "Incorrect Answer 2": "iron",
            "Incorrect Answer 3": "carbon",
        }
    ],
    "humaneval": HUMAN_EVAL,
    "humaneval-plus": HUMAN_EVAL,
    "mbpp": [
        {
            "task_id": 11,
            "text": "Write a function that doubles a number.",
            "code": "def twice(x):\r\n    return 2 * x",
            "test_list": ["assert twice(2) == 4", "assert twice(OFFSET) == 10"],
            "test_setup_code": "OFFSET = 5",
        }
    ],
    "mbpp-plus": [
        {
            "task_id": 12,
            "prompt": "Write a function for the mean of a list.",
            "code": MIDDLE,
            "test_imports": ["import math"],
            "test_list": ["assert middle([1, 3]) == 2"],
            "test": NUMPY_TEST,
        }
    ],
}


def write_copy(name: str, folder: Path, suffix: str = ".jsonl") -> Path:
    """A local copy of a data set in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{suffix}"
    if suffix == ".parquet":
        Dataset.from_list(ROWS[name]).to_parquet(path)
    elif suffix == ".csv":
        Dataset.from_list(ROWS[name]).to_csv(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    return path


def prepare_copy(name: str, folder: Path, **options):
    """Prepare a local copy into `$RLSGD_CACHE`; its manifest."""
    own = {"local": write_copy(name, folder), "rows": len(ROWS[name]), **options}
    return prepare(SOURCES[name], Options(**own))


def prepare_small_data(folder: Path) -> None:
    """Every data set, from its copy, into `$RLSGD_CACHE`."""
    for name in (*SUITES["math-benchmarks"], *SUITES["code-benchmarks"]):
        prepare_copy(name, folder)
    prepare_copy("numina-math", folder, sample=8, max_question_tokens=0)
    prepare_copy("prime-code", folder, max_question_tokens=0)
