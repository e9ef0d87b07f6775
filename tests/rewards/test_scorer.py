import threading

import pytest

from rlsgd.core.problems import Problem
from rlsgd.rewards import ExactAnswer, MathVerify, ReasoningGymScore, Scorer, WeightedSum
from tests.rewards.hostile_rewards import (
    BadParts,
    Hostile,
    HostileInline,
    NeedsTheTrainer,
    Unpicklable,
)

PROBLEM = Problem("q", "a")


TIMEOUT = "timeout: no score after 1 s"


@pytest.fixture(scope="module")
def hostile():
    with Scorer(Hostile(), timeout_seconds=600, failure_score=-0.5) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def impatient():
    with Scorer(Hostile(), timeout_seconds=1, failure_score=-0.5) as scorer:
        scorer.wait_until_ready()
        yield scorer


def score_in_time(scorer, *completions):
    """Scores where none but `hang` is out of time, which the others may be on a busy machine."""
    for _ in range(20):
        scores = score(scorer, *completions)
        failures = [f for c, f in zip(completions, scores.failures, strict=True) if c != "hang"]
        if TIMEOUT not in failures:
            return scores
    raise AssertionError(f"out of time, twenty times: {scores}")


def score(scorer, *completions):
    return scorer.score(list(completions), [PROBLEM] * len(completions))


def test_only_the_offender_fails_whatever_it_does(hostile):
    scores = score(
        hostile, "ok", "raise", "none", "ok", "nan", "text", "die", "infinite", "exit", "ok"
    )
    assert scores.failures == [
        None,
        "ZeroDivisionError: division by zero",
        "TypeError: hostile returned None, not a number",
        None,
        "ValueError: hostile returned nan, not a finite number",
        "TypeError: hostile returned '1.0', not a number",
        "worker died: exit code 1",
        "ValueError: hostile returned -inf, not a finite number",
        "SystemExit: bye",
        None,
    ]
    expected = [1.0, -0.5, -0.5, 1.0, -0.5, -0.5, -0.5, -0.5, -0.5, 1.0]
    assert scores.rewards == expected
    assert scores.parts == {"hostile": expected}
    assert scores.full_marks == 1.0


def test_only_what_hangs_is_out_of_time(impatient):
    scores = score_in_time(impatient, "ok", "hang", "ok", "hang", "ok")
    assert scores.failures == [None, TIMEOUT, None, TIMEOUT, None]
    assert scores.rewards == [1.0, -0.5, 1.0, -0.5, 1.0]


def test_slow_but_honest_verifiers_do_not_time_out_together(impatient):
    worker = impatient._workers[0]._process.pid
    scores = score_in_time(impatient, *["slow"] * 4)  # together more than one of them may take
    assert scores.rewards == [1.0] * 4
    assert scores.failures == [None] * 4
    assert impatient._workers[0]._process.pid == worker  # it was never replaced


def test_empty_list_scores_nothing(hostile):
    scores = score(hostile)
    assert (scores.rewards, scores.failures, scores.parts) == ([], [], {"hostile": []})


def test_lists_of_different_length_are_refused(hostile):
    with pytest.raises(ValueError, match="shorter"):
        hostile.score(["a", "b"], [PROBLEM])


def test_two_workers_keep_the_order():
    with Scorer(ExactAnswer(), workers=2) as inline:
        assert inline._workers == []
    reward = WeightedSum([Hostile(), ExactAnswer()], [1.0, 10.0])
    with Scorer(reward, workers=2) as scorer:
        scores = score(scorer, "a", "b", "raise", "a", "b")
    assert scores.rewards == [11.0, 1.0, 0.0, 11.0, 1.0]
    assert scores.parts == {
        "hostile": [1.0, 1.0, 0.0, 1.0, 1.0],
        "exact_answer": [1.0, 0.0, 0.0, 1.0, 0.0],
    }
    assert scores.full_marks == 11.0


def test_inline_reward_that_misbehaves_is_a_counted_failure():
    scores = score(Scorer(HostileInline(), failure_score=-1.0), "ok", "raise", "none")
    assert scores.rewards == [1.0, -1.0, -1.0]
    assert scores.failures == [
        None,
        "ZeroDivisionError: division by zero",
        "TypeError: hostile_inline returned None, not a number",
    ]


def test_inline_reward_lets_the_trainer_stop():
    # SystemExit is how Lightning ends a run on SIGTERM.
    with pytest.raises(SystemExit):
        score(Scorer(HostileInline()), "exit")


def test_parts_must_be_those_announced():
    scores = score(Scorer(BadParts()), "x")
    assert scores.failures[0] is not None
    assert "part_names ['bad_parts'], but returned ['other']" in scores.failures[0]


def test_failure_to_build_the_reward_is_an_early_error():
    with (
        Scorer(NeedsTheTrainer()) as scorer,
        pytest.raises(ValueError, match=r"--data.reward: needs_the_trainer could not.*no module"),
    ):
        scorer.wait_until_ready()


def test_reward_that_cannot_be_pickled_is_an_error():
    with pytest.raises(ValueError, match=r"--data.reward: unpicklable .* must be picklable"):
        Scorer(Unpicklable())


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"timeout_seconds": 0.0}, "--data.reward_timeout_seconds"),
        ({"timeout_seconds": float("inf")}, "--data.reward_timeout_seconds"),
        ({"failure_score": float("nan")}, "--data.reward_failure_score"),
        ({"workers": 0}, "workers"),
    ],
)
def test_options_are_checked(options, flag):
    with pytest.raises(ValueError, match=flag):
        Scorer(Hostile(), **options)


def test_worker_loads_verifiers_but_not_torch():
    reward = WeightedSum([Hostile(), MathVerify(), ReasoningGymScore()], [1.0, 1.0, 1.0])
    with Scorer(WeightedSum([Hostile(), reward], [1.0, 1.0])) as scorer:
        entry = {"question": "1+1", "answer": "a", "metadata": {}}
        metadata = {"source_dataset": "chain_sum", "source_config": {}, "entry": entry}
        scores = scorer.score(["torch"], [Problem("1+1", "2", metadata)])
    assert scores.failures == [None]
    assert scores.parts["hostile"] == [0.0]  # False: torch is not in sys.modules


@pytest.mark.parametrize("isolated", [True, False])
def test_math_verify_scores_right_in_a_thread(isolated):
    reward = MathVerify()
    reward.isolated = isolated
    answers = ["\\frac{1}{2}", "x^2+1", "72"]
    completions = ["so $0.5$", "it is $1 + x^2$", "the answer is 73"]
    problems = [Problem("q", answer) for answer in answers]
    found = []
    with Scorer(reward) as scorer:
        thread = threading.Thread(target=lambda: found.append(scorer.score(completions, problems)))
        thread.start()
        thread.join()
    assert found[0].rewards == [1.0, 1.0, 0.0]
    assert found[0].failures == [None, None, None]
