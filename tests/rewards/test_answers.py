"""The answers that majority votes count."""

import pytest

from rlsgd.core.problems import Problem
from rlsgd.rewards import (
    ExactAnswer,
    Format,
    MathVerify,
    ReasoningGymScore,
    Reward,
    Scorer,
    WeightedSum,
)


class Plain(Reward):
    isolated = False

    def score(self, completion, problem):
        return 0.0


class Unanswerable(Plain):
    def answer_of(self, completion):
        raise LookupError("no answer here")


@pytest.mark.parametrize(
    ("reward", "completion", "answer"),
    [
        (Plain(), " so 7\n", "so 7"),
        (ExactAnswer(), " 7\n", "7"),
        (ExactAnswer(ignore_case=True), "Yes", "yes"),
        (ExactAnswer("last_number"), "it is $1,000.0", "1000"),
        (ExactAnswer("last_number"), "or .5", "1/2"),
        (ExactAnswer("last_number"), "none", None),
        (ExactAnswer("answer_tag"), "<answer> A </answer>", "A"),
        (ReasoningGymScore("answer_tag"), "<answer> A </answer>", "A"),
        (ReasoningGymScore("answer_tag"), "A", None),
        (MathVerify(), r"2 so \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (MathVerify(), "it is 12.", "12"),
        (MathVerify(), " x ", "x"),
        (WeightedSum([Format("."), ExactAnswer("answer_tag")], [1, 1]), "<answer>5</answer>", "5"),
        (WeightedSum([Format(".")], [1]), " 5 ", "5"),
    ],
)
def test_answers(reward, completion, answer):
    assert reward.answer_of(completion) == answer


def test_scores_carry_answers_also_from_a_worker_process():
    completions = ["<answer>1</answer>", "2", "<answer> 3 </answer>"]
    problems = [Problem("q", "3")] * 3
    reward = WeightedSum([Format(".*"), ExactAnswer("answer_tag")], [0.5, 1.0])
    assert reward.isolated
    with Scorer(reward) as scorer:
        scores = scorer.score(completions, problems)
    assert scores.answers == ["1", None, "3"]
    assert scores.rewards == [0.5, 0.5, 1.5]


def test_an_answer_that_raises_is_a_failure_with_its_reason():
    with Scorer(Unanswerable()) as scorer:
        scores = scorer.score(["a"], [Problem("q", "a")])
    assert (scores.answers, scores.failures) == ([None], ["LookupError: no answer here"])
