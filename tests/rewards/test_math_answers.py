"""A table of answers: what equals the answer on record, by form, and what does not."""

import time

import pytest

from rlsgd.core.problems import Problem
from rlsgd.rewards import MathVerify, Scorer
from tests.rewards.hostile_rewards import LongCall
from tests.rewards.math_answers import BOXED, COMPLETIONS
from tests.rewards.plain_answers import PLAIN

FORMS = {**BOXED, **PLAIN}

NESTED = "1"
for _ in range(400):
    NESTED = rf"\frac{{1}}{{1+{NESTED}}}"


@pytest.fixture(scope="module")
def reward():
    reward = MathVerify()
    reward.prepare()
    return reward


@pytest.mark.parametrize("gold", FORMS)
def test_right_answers_are_accepted_and_wrong_ones_are_not(reward, gold):
    right, wrong = FORMS[gold]
    scores = {a: reward.score(rf"so \boxed{{{a}}}", Problem("q", gold)) for a in right + wrong}
    assert scores == {**dict.fromkeys(right, 1.0), **dict.fromkeys(wrong, 0.0)}


def test_the_table_has_more_than_eight_hundred_answers():
    assert sum(len(answers) for forms in FORMS.values() for answers in forms) > 800


@pytest.mark.parametrize(("completion", "gold", "score"), COMPLETIONS)
def test_the_answer_is_found_in_the_completion(reward, completion, gold, score):
    assert reward.score(completion, Problem("q", gold)) == score


def test_thinking_is_looked_through_where_no_tags_are_set():
    reward = MathVerify()
    reward.look_after(None)
    assert reward.score(r"<think>maybe \boxed{5}", Problem("q", "5")) == 1.0


@pytest.mark.parametrize(
    "bomb",
    [
        rf"\boxed{{{NESTED}}}",
        f"${NESTED}$",
        r"\boxed{9^{9^{9^{9}}}}",
        r"\boxed{10^{1000000}}",
        r"\boxed{99999999!}",
        r"\boxed{(x+y+z)^{99999}}",
        r"\boxed{" * 5000,
        r"\boxed{" + "(" * 5000 + "1" + ")" * 5000 + "}",
        r"\boxed{9**9**9}",
        r"\boxed{(10^7)!}",
        rf"\boxed{{{'1' * 100_000}}}",
        rf"\boxed{{{chr(92)}pm {chr(92)}pm {chr(92)}pm {chr(92)}pm {chr(92)}pm 1}}",
        "9" * 40_000,
    ],
    ids=lambda text: text[:20],
)
def test_what_is_too_large_is_refused_unread(reward, bomb, monkeypatch):
    monkeypatch.setattr("rlsgd.rewards.maths.equality.expression", pytest.fail)
    assert reward.score(bomb, Problem("q", "2")) == 0.0


def test_an_answer_over_budget_is_a_failure_and_its_neighbours_are_scored(monkeypatch):
    begin = time.process_time()
    monkeypatch.setattr("rlsgd.rewards.math.BUDGET_SECONDS", 0.2)

    def forever(*_):
        while True:
            pass

    monkeypatch.setattr("rlsgd.rewards.maths.equality.expression", forever)
    with pytest.raises(TimeoutError, match=r"no verdict within 0.2 seconds of processor time"):
        MathVerify().score(r"\boxed{x+1}", Problem("q", "1+x"))
    assert time.process_time() - begin > 0.1, "it was the budget that ended it"


@pytest.mark.parametrize(
    "bomb",
    [r"(x+y+z)^{99}", r"\sum_{k=1}^{10^9} k^k", "1" * 999, r"\binom{10^7}{10^6}", "999999!"],
    ids=lambda text: text[:20],
)
def test_no_bomb_takes_more_than_its_budget(reward, bomb, monkeypatch):
    monkeypatch.setattr("rlsgd.rewards.math.BUDGET_SECONDS", 0.5)
    begin = time.process_time()
    try:
        assert reward.score(rf"\boxed{{{bomb}}}", Problem("q", "x^2 + 1")) == 0.0
    except TimeoutError as error:
        assert "0.5 seconds of processor time" in str(error)
    assert time.process_time() - begin < 2.0


def test_one_call_that_no_signal_interrupts_costs_the_time_limit_once():
    with Scorer(LongCall(), timeout_seconds=3) as scorer:
        scorer.wait_until_ready()
        [worker] = scorer._workers
        process = worker._process
        texts = [r"\boxed{7}", r"\boxed{bomb}", r"\boxed{7}"]
        scores = scorer.score(texts, [Problem("q", "7")] * 3)
        assert scores.rewards == [1.0, 0.0, 1.0]
        assert scores.failures[1].startswith("timeout") and scores.failures[::2] == [None, None]
        assert worker._process is process


def test_a_bomb_restarts_no_worker():
    with Scorer(MathVerify(), timeout_seconds=60) as scorer:
        scorer.wait_until_ready()
        [worker] = scorer._workers
        process = worker._process
        bombs = [rf"\boxed{{{NESTED}}}", r"\boxed{7}"]
        scores = scorer.score(bombs, [Problem("q", "7")] * 2)
        assert (scores.rewards, scores.failures) == ([0.0, 1.0], [None, None])
        assert worker._process is process


def test_an_answer_with_a_part_that_cannot_be_read_is_wrong_and_no_failure(reward):
    """The answer on record is not to blame."""
    for answer in ("<!DOCTYPE x [<!ENTITY a 'a'>]><x>&a;</x>", r"\boxed{72, </x>, <y>}"):
        assert reward.score(answer, Problem("q", "72")) == 0.0
