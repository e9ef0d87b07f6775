import json
import pickle
from decimal import Decimal
from itertools import product

import pytest
from reasoning_gym.factory import get_score_answer_fn

from rlsgd.core.problems import Problem
from rlsgd.rewards import ExactAnswer, Format, MathVerify, ReasoningGymScore, WeightedSum
from rlsgd.rewards.base import grade_safely
from rlsgd.rewards.reasoning_gym import build_dataset


@pytest.mark.parametrize(
    ("options", "completion", "answer", "score"),
    [
        ({}, " Paris\n", "Paris", 1.0),
        ({}, "paris", "Paris", 0.0),
        ({"ignore_case": True}, "paris", "PARIS ", 1.0),
        ({"extract": "answer_tag"}, "Rome? <answer>Paris</answer>", "Paris", 1.0),
        ({"extract": "answer_tag"}, "Paris", "Paris", 0.0),
        ({"extract": "boxed"}, r"\boxed{x^{2}}", "x^{2}", 1.0),
        ({"extract": "last_number"}, "2 + 2 = 1,000.0", "#### 1000", 1.0),
        ({"extract": "last_number"}, "it is 0.5", "1/2", 1.0),
        ({"extract": "last_number"}, "no idea", "0", 0.0),
        ({"extract": "last_number"}, "41", "42", 0.0),
    ],
)
def test_exact_answer(options, completion, answer, score):
    assert ExactAnswer(**options).score(completion, Problem("q", answer)) == score


def test_exact_answer_without_a_number_on_record_is_a_failure():
    grade = grade_safely(ExactAnswer("last_number"), "3", Problem("q", "three"))
    assert grade.failure == "ValueError: no number in the answer on record 'three'"


@pytest.mark.parametrize("reward", [ExactAnswer, ReasoningGymScore])
def test_unknown_extraction_names_the_flag(reward):
    with pytest.raises(ValueError, match=r"--data.reward.extract must be one of .*boxed.*'box'"):
        reward("box")


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        (r"hence $\frac{2}{4}$", "1/2", 1.0),
        (r"\boxed{1{,}234}", "1,234", 1.0),
        ("the answer is 0.3333", r"\frac{1}{3}", 0.0),
        (r"$(x+1)^2$", r"$x^2+2x+1$", 1.0),
        ("$x = 3$", "3", 1.0),
        ("", "3", 0.0),
        (r"$\frac{$ \boxed{", "3", 0.0),
        ("3 or 4", "3", 0.0),
    ],
)
def test_math_verify(completion, answer, score):
    assert MathVerify().score(completion, Problem("q", answer)) == score


def test_math_verify_options_reach_the_library():
    problem = Problem("q", r"\frac{1}{3}")
    assert MathVerify(float_rounding=2).score("it is 0.333", problem) == 1.0
    assert MathVerify().score("$y + 1$", Problem("q", "x + 1")) == 0.0
    assert MathVerify(strict=False).score("$y + 1$", Problem("q", "x + 1")) == 1.0


def test_math_verify_with_an_unreadable_answer_on_record_is_a_failure():
    grade = grade_safely(MathVerify(), "3", Problem("q", ""))
    assert grade.failure == "ValueError: cannot read the answer on record '' as maths"


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("<think>a\nb</think>5", 1.0),
        (" <think>a</think>5", 0.0),
        ("<think>a</think>", 0.0),
    ],
)
def test_format(completion, score):
    reward = pickle.loads(pickle.dumps(Format("<think>.*</think>.+")))
    assert reward.score(completion, Problem("q", "a")) == score


def test_format_refuses_a_broken_pattern():
    with pytest.raises(ValueError, match=r"--data.reward.pattern is not a regular expression"):
        Format("(a")


def test_weighted_sum_adds_and_names_its_members():
    reward = WeightedSum(
        [ExactAnswer(), Format("[0-9]+"), Format("[0-9]"), ExactAnswer("last_number")],
        [2.0, 0.5, -1.0, 0.25],
    )
    score, parts = reward.grade("42", Problem("q", "42"))
    # --- Hand calculation: 2 x 1 + 0.5 x 1 - 1 x 0 + 0.25 x 1 ---
    assert score == 2.75
    assert parts == {"exact_answer": 1.0, "format": 1.0, "format_2": 0.0, "exact_answer_2": 1.0}
    assert reward.score("7", Problem("q", "42")) == 0.5 - 1.0
    assert reward.parts("7", Problem("q", "42")) == {
        "exact_answer": 0.0,
        "format": 1.0,
        "format_2": 1.0,
        "exact_answer_2": 0.0,
    }
    assert reward.full_marks == 2.0 + 0.5 + 0.25
    assert reward.isolated
    assert not WeightedSum([ExactAnswer()], [1.0]).isolated
    nested = WeightedSum([reward, ExactAnswer()], [2.0, 1.0])
    assert nested.full_marks == 2 * 2.75 + 1


@pytest.mark.parametrize("weights", [[], [1.0, 2.0], [-1.0], [float("nan")]])
def test_weighted_sum_checks_its_weights(weights):
    with pytest.raises(ValueError, match=r"--data.reward.weights"):
        WeightedSum([ExactAnswer()], weights)


def problem_of(name, config=None, index=0):
    entry = build_dataset(name, config or {}, seed=3, size=index + 1)[index]
    metadata = {"source_dataset": name, "source_config": config or {}, "entry": entry}
    return Problem(entry["question"], entry["answer"] or "", metadata)


def test_reasoning_gym_score_is_the_data_sets_own():
    reward = ReasoningGymScore("answer_tag")
    problem = problem_of("chain_sum")
    assert reward.score(f"<answer>{problem.answer}</answer>", problem) == 1.0
    assert reward.score(problem.answer, problem) == 0.0
    wordy = f"it is {problem.answer}"
    part_mark = len(problem.answer) / len(wordy)  # the formula of reasoning_gym's base class
    assert reward.score(f"<answer>{wordy}</answer>", problem) == part_mark


def test_reasoning_gym_score_uses_the_config_of_the_task():
    # --- the data set's tolerance is 10 ** -max_num_decimal_places: 0.1 here, 0.001 by default ---
    config = {"min_num_decimal_places": 1, "max_num_decimal_places": 1}
    problem = problem_of("decimal_arithmetic", config)
    close = str(Decimal(problem.answer) + Decimal("0.05"))
    assert ReasoningGymScore().score(close, problem) == 1.0
    by_defaults = get_score_answer_fn("decimal_arithmetic")
    assert by_defaults(close, problem.metadata["entry"]) == 0.0


def test_reasoning_gym_score_knows_answers_that_are_not_on_record():
    problem = problem_of("graph_color")
    assert problem.answer == ""
    puzzle = problem.metadata["entry"]["metadata"]["puzzle"]
    colouring = next(
        dict(zip(puzzle["vertices"], colours, strict=True))
        for colours in product(puzzle["color_options"], repeat=len(puzzle["vertices"]))
        if all(colours[a] != colours[b] for a, b in puzzle["edges"])
    )
    assert ReasoningGymScore().score(json.dumps(colouring), problem) == 1.0
    colouring[puzzle["edges"][0][0]] = colouring[puzzle["edges"][0][1]]
    assert ReasoningGymScore().score(json.dumps(colouring), problem) == 0.01


def test_reasoning_gym_score_reaches_the_members_of_a_composite():
    config = {"datasets": [{"name": "chain_sum", "weight": 1, "config": {"max_terms": 2}}]}
    problem = problem_of("composite", config)
    assert ReasoningGymScore().score(problem.answer, problem) == 1.0


def test_reasoning_gym_score_needs_a_problem_of_its_task():
    grade = grade_safely(ReasoningGymScore(), "4", Problem("2+2", "4"))
    assert grade.failure is not None
    assert "not one of the task ReasoningGym" in grade.failure


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("chainsum", {}, r"--data.task.name: .* 'chainsum'; did you mean chain_sum"),
        ("chain_sum", {"max_term": 2}, r"--data.task.config: .*'max_term'; did you mean max_terms"),
        ("chain_sum", {"zz": 2}, r"--data.task.config: .*'zz'; there are .*min_digits"),
        ("chain_sum", {"seed": 2}, r"--data.task.config: the task itself sets 'seed'"),
        ("chain_sum", {"min_terms": 0}, r"--data.task.config is not right for chain_sum"),
        ("composite", {}, r"--data.task.config is not right for composite"),
    ],
)
def test_data_sets_that_cannot_be_built_name_the_flag(name, config, message):
    with pytest.raises(ValueError, match=message):
        build_dataset(name, config, seed=0, size=1)
