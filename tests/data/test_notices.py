"""Rewards have a voice: reasons of failures, nothing scored at all, nothing to learn from."""

import logging

import pytest

from rlsgd.core.problems import NothingScored, Problem, Prompt, Scores
from rlsgd.data.notices import RewardNotices

PROMPTS = [Prompt(Problem("q", "a"), "q", [1])] * 4


def scores(rewards, failures=(None,) * 4):
    return Scores(list(rewards), {"r": list(rewards)}, list(failures))


def test_reasons_are_said_once_and_kept_for_the_logs(caplog):
    notices = RewardNotices()
    failing = scores([0.0] * 4, [None, "KeyError: 'x'", "KeyError: 'x'", None])
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            notices.failed(PROMPTS, list("abcd"), failing)
    assert caplog.text.count("--data.reward failed for 2 of 4 completions: KeyError: 'x'") == 1
    assert [f["completion"] for f in notices.failures] == ["b", "c"]
    assert notices.failures[0]["failure"] == "KeyError: 'x'"
    notices.require_scores("the rollout")  # two of four have a score


def test_a_rollout_without_any_score_stops_the_run():
    notices = RewardNotices()
    notices.failed(PROMPTS, list("abcd"), scores([0.0] * 4, ["TypeError: no"] * 4))
    with pytest.raises(NothingScored, match=r"failed for all 4 completions of it, .*TypeError: no"):
        notices.require_scores("it")
    notices.require_scores("what came after")


def test_epochs_without_two_rewards_in_a_group_are_said(caplog):
    notices = RewardNotices()
    with caplog.at_level(logging.INFO):
        for epoch in range(9):
            notices.spread(scores([0.0, 0.0, 1.0, 1.0]), 2, epoch)
        assert [n in caplog.text for n in ("for 2 ep", "for 4 ep", "for 8 ep")] == [True] * 3
        assert caplog.text.count("no group has had two different rewards") == 3
        caplog.clear()
        notices.spread(scores([0.0, 1.0, 0.0, 0.0]), 2, 9)
        notices.spread(scores([0.0] * 4), 2, 10)
        assert not caplog.text
