"""Plain functions as rewards, and what may stand for a number."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from rlsgd.cli.named_reward import explain_reward
from rlsgd.core.problems import Problem
from rlsgd.rewards import BatchFunctionReward, FunctionReward, Scorer, WeightedSum, as_reward
from rlsgd.rewards.base import finite_number, grade_safely
from rlsgd.rewards.trial import try_reward

ROW = Problem("How long?", "ab", {"columns": {"level": 3, "source": "own"}})


def shorter(completion, answer):
    return len(answer) - len(completion)


def by_level(completion, level, source="none"):
    return np.float32(level) if source == "own" else 0


def everything(response, **columns):
    return len(response) + columns["level"]


def ranks(completions, answers, level):
    assert answers == ["ab"] * len(completions) and level == [3] * len(completions)
    order = sorted(completions)
    return torch.tensor([order.index(c) for c in completions])


def too_few(completions):
    return [1.0]


def some_text(completions):
    return [1.0, "two", None]


def divides(completion):
    return 1 / len(completion)


def misspelt(completion, anwser):
    return 0


def two_kinds(completion, completions):
    return 0


@pytest.mark.parametrize(
    ("function", "completion", "score"),
    [
        (shorter, "abcd", -2.0),
        (by_level, "x", 3.0),
        (everything, "<think>abc</think>de", 5.0),
        (everything, "<think>abc", 3.0),  # cut off: there is no response
    ],
)
def test_arguments_get_their_values_by_name(function, completion, score):
    reward = as_reward(function)
    assert isinstance(reward, FunctionReward)
    reward.check(ROW)
    assert grade_safely(reward, completion, ROW).score == score
    assert reward.part_names == [function.__name__]


@pytest.mark.parametrize("isolated", [True, False])
def test_a_function_of_all_completions_is_called_once(isolated):
    reward = as_reward(ranks)
    assert isinstance(reward, BatchFunctionReward)
    reward.isolated = isolated
    with Scorer(reward, workers=2) as scorer:
        scores = scorer.score(["c", "a", "b"], [ROW] * 3)
        assert scorer.score([], []).rewards == []
    assert scores.rewards == [2.0, 0.0, 1.0]
    assert scores.failures == [None] * 3


def test_failures_of_functions_have_their_reasons():
    with Scorer(as_reward(too_few)) as scorer:
        failures = scorer.score(["a", "b"], [ROW] * 2).failures
    assert failures == ["ValueError: too_few returned 1 rewards for 2 completions"] * 2
    with Scorer(as_reward(some_text)) as scorer:
        scores = scorer.score(["a", "b", "c"], [ROW] * 3)
    assert scores.rewards == [1.0, 0.0, 0.0]
    assert scores.failures[1:] == [
        "TypeError: some_text returned 'two', not a number",
        "TypeError: some_text returned None, not a number",
    ]
    with Scorer(as_reward(divides), failure_score=-1.0) as scorer:
        scores = scorer.score(["", "ab"], [ROW] * 2)
    assert scores.rewards == [-1.0, 0.5]
    assert scores.failures == ["ZeroDivisionError: division by zero", None]


def test_arguments_that_nothing_fills_are_refused_before_training():
    with (
        Scorer(as_reward(misspelt)) as scorer,
        pytest.raises(ValueError, match=r"did you mean ans"),
    ):
        try_reward(scorer, [ROW])
    with pytest.raises(ValueError, match=r"--data.reward: two_kinds has arguments for one compl"):
        as_reward(two_kinds)
    with pytest.raises(ValueError, match=r"--data.reward: the class Decimal is not a Reward"):
        as_reward(Decimal)
    with pytest.raises(ValueError, match=r"--data.reward.rewards: a function of all completions"):
        WeightedSum([as_reward(ranks)], [1.0])


def test_a_module_that_cannot_be_imported_is_explained(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text("def f(completion) return 1\n")
    (tmp_path / "raising_rewards.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    said = explain_reward("own_rewards.f")
    assert (
        said == "--data.reward own_rewards.f: own_rewards.py, line 1: expected ':'; mend the module"
    )
    assert explain_reward("own_reward.f") == (
        "--data.reward own_reward.f: there is no module own_reward; did you mean own_rewards?"
    )
    assert "raising_rewards raised ZeroDivisionError: division" in explain_reward(
        "raising_rewards.f"
    )
    assert explain_reward("json.dumps") is None


@pytest.mark.parametrize(
    "value",
    [
        *(1, 1.0, True, np.bool_(True), np.float16(1), np.int64(1), np.array(1.0), np.array(True)),
        *(torch.tensor(1), torch.tensor(1.0), torch.tensor(True), Decimal("1.0"), Fraction(2, 2)),
    ],
    ids=repr,
)
def test_scalars_of_all_kinds_are_numbers(value):
    number = finite_number(value, "reward")
    assert number == 1.0 and type(number) is float


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([1.0]), "not a number"),
        (torch.ones(2), "not a number"),
        ("1", "not a number"),
        (None, "not a number"),
        (1j, "not a number"),
        (np.complex64(1), "not a number"),
        (np.float32("nan"), "not a finite number"),
        (torch.tensor(float("inf")), "not a finite number"),
        (Decimal("NaN"), "not a finite number"),
        (10**400, "not a finite number"),
    ],
    ids=repr,
)
def test_what_is_no_finite_number_is_a_failure(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        finite_number(value, "reward")
