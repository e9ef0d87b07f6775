"""When the difficulty rises, by counts worked out by hand and against a loop written apart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsgd.data.tasks.adaptive_difficulty import Difficulty, RisingRule

RULE = RisingRule(window=2, threshold=0.9, min_prompts=8)
GROUP = 4


def difficulty(rule=RULE, initial=0, last=5):
    return Difficulty(rule, initial, last)


def record(difficulty, epoch, prompts, correct):
    difficulty.record(epoch, prompts, prompts * GROUP, correct)


@pytest.mark.parametrize(
    # --- 8 prompts with 4 completions each: 28/32 = 0.875, 29/32 = 0.90625 ---
    ("prompts", "correct", "high"),
    [(8, 28, 0), (8, 29, 1), (8, 32, 1), (7, 28, 0), (0, 0, 0), (9, 32, 0), (9, 33, 1)],
)
def test_it_rises_from_the_next_epoch_on(prompts, correct, high):
    own = difficulty()
    record(own, 3, prompts, correct)
    assert (own.high(3), own.high(4), own.high(100)) == (0, high, high)


def test_the_threshold_itself_is_enough():
    # --- 72/80 is 0.9 exactly; 0.9 * 80 and 0.9 * 10 * 8 round to it, 0.7 * 10 does not ---
    for threshold, correct, of in ((0.9, 72, 80), (0.7, 7, 10), (0.6, 3, 5), (1.0, 4, 4)):
        for missing in (0, 1):
            own = difficulty(RisingRule(1, threshold, min_prompts=1))
            own.record(0, 1, of, correct - missing)
            assert own.high(1) == 1 - missing


def test_prompts_of_several_epochs_add_up():
    own = difficulty()
    record(own, 0, 4, 16)
    record(own, 1, 3, 12)
    assert own.high(2) == 0 and own.counts == [7, 28, 28]
    record(own, 2, 1, 1)  # 29 of 32
    assert own.high(2) == 0 and own.high(3) == 1 and own.counts == [0, 0, 0]


def test_a_count_that_did_not_reach_it_is_forgotten():
    own = difficulty()
    record(own, 0, 8, 0)
    assert own.counts == [0, 0, 0]
    record(own, 1, 8, 32)  # with the first 8 prompts it would be half
    assert own.high(2) == 1


def test_it_never_falls():
    own = difficulty()
    record(own, 0, 8, 32)
    for epoch in range(1, 50):
        record(own, epoch, 100, 0)
    assert [own.high(epoch) for epoch in (0, 1, 49, 50)] == [0, 1, 1, 1]


def test_it_stops_at_the_last_level():
    own = difficulty(initial=1, last=2)
    for epoch in range(5):
        record(own, epoch, 8, 32)
    assert [own.high(epoch) for epoch in range(6)] == [1, 2, 2, 2, 2, 2]
    assert own.rises == [1]
    assert difficulty(initial=9, last=2).high(0) == 2


def test_the_window_follows():
    own = difficulty(RisingRule(window=3, threshold=0.9, min_prompts=1))
    for epoch in range(4):
        record(own, epoch, 1, 4)
    windows = [(own.low(epoch), own.high(epoch)) for epoch in range(5)]
    assert windows == [(0, 0), (0, 1), (0, 2), (1, 3), (2, 4)]


def test_a_second_round_of_the_epoch_counts_until_it_has_risen():
    own = difficulty()
    record(own, 0, 5, 20)
    record(own, 0, 3, 12)
    record(own, 0, 8, 0)  # at 0, which is no longer the highest
    assert (own.rises, own.counts) == ([1], [0, 0, 0])
    record(own, 1, 2, 3)
    assert own.counts == [2, 8, 3]


def test_what_is_logged_is_the_count_that_decided():
    own = difficulty()
    assert own.metrics(0) == {"high": 0, "low": 0, "prompts_at_high": 0}
    record(own, 0, 6, 24)
    assert own.metrics(0)["accuracy_at_high"] == 1.0
    record(own, 1, 6, 20)
    expected = {"high": 0, "low": 0, "prompts_at_high": 12, "accuracy_at_high": 44 / 48}
    assert own.metrics(1) == expected
    assert own.metrics(2)["high"] == 1


def test_it_goes_on_from_its_state():
    whole, first, second = difficulty(initial=1), difficulty(initial=1), difficulty()
    parts = [(5, 20), (4, 16), (3, 2), (4, 16), (1, 4), (8, 29), (2, 1), (6, 24)]
    for epoch, (prompts, correct) in enumerate(parts):
        record(whole, epoch, prompts, correct)
    for epoch, (prompts, correct) in enumerate(parts[:4]):
        record(first, epoch, prompts, correct)
    assert first.rises and any(first.counts), "there is something to restore of each kind"
    second.load_state_dict(first.state_dict())
    for epoch, (prompts, correct) in enumerate(parts[4:], start=4):
        record(second, epoch, prompts, correct)
    assert second.state_dict() == whole.state_dict()
    assert second.rises != first.rises


@settings(max_examples=200, deadline=None)
@given(
    rounds=st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1)), max_size=40),
    threshold=st.sampled_from([0.25, 0.5, 0.75, 1.0]),  # exact in binary
    min_prompts=st.integers(1, 12),
)
def test_it_equals_a_loop_over_completions(rounds, threshold, min_prompts):
    own = difficulty(RisingRule(4, threshold, min_prompts), last=3)
    high, sampled = 0, []
    for epoch, (prompts, share) in enumerate(rounds):
        assert own.high(epoch) == high
        correct = int(share * prompts * GROUP)
        record(own, epoch, prompts, correct)
        sampled += [True] * correct + [False] * (prompts * GROUP - correct)
        if len(sampled) >= min_prompts * GROUP:
            if sum(sampled) >= threshold * len(sampled):
                high = min(high + 1, 3)
            sampled = []
    assert own.high(len(rounds)) == high


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "--data.task.window and --data.task.min_prompts must be at least 1"),
        ({"min_prompts": 0}, "--data.task.window and --data.task.min_prompts must be at least 1"),
        ({"threshold": 0.0}, "--data.task.threshold must be above 0 and at most 1; got 0.0"),
        ({"threshold": 1.1}, "--data.task.threshold must be above 0 and at most 1; got 1.1"),
    ],
)
def test_rules_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RisingRule(**{"window": 4, "threshold": 0.9, "min_prompts": 8, **options})
