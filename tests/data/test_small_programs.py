"""The shipped problems: their own solutions pass, and nothing less does."""

import json

import pytest

from rlsgd.data import SmallPrograms
from rlsgd.data.tasks.small_programs import PROBLEMS

ROWS = [json.loads(line) for line in PROBLEMS.read_text().splitlines()]
WRONG = (
    "    pass\n",
    "    return 0\n",
    "    return None\n",
    "    return []\n",
    "    return True\n",
)


def passes(row, completion):
    """Our own code may run here; what a model writes may not."""
    names = {}
    exec(row["prompt"] + completion + row["test"], names)
    try:
        names["check"](names[row["entry_point"]])
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["entry_point"])
def test_tests_tell_right_from_wrong(row):
    assert passes(row, row["canonical_solution"])
    assert not any(passes(row, completion) for completion in WRONG)


def test_every_problem_is_in_one_set():
    task = SmallPrograms(held_out_fraction=0.5)
    sets = [
        task.train_problems(seed=0, epoch=0, count=20),
        task.validation_problems(99),
        task.test_problems(99),
    ]
    questions = [{problem.question for problem in problems} for problems in sets]
    assert [len(part) for part in questions] == [20, 10, 10]
    assert set.union(*questions) == {row["prompt"] for row in ROWS}


def test_default_reward_scores_a_completion_of_the_question():
    reward, problem = SmallPrograms().default_reward(), SmallPrograms().test_problems(1)[0]
    assert reward.score(problem.answer, problem) == reward.full_marks
    assert reward.score("    pass\n", problem) == 0
