"""Difficulties are the levels of reasoning_gym's own curricula."""

from itertools import pairwise

import pytest

from rlsgd.data.tasks.adaptive_curriculum import Curriculum


def test_every_attribute_is_at_its_level_alone():
    # --- chain_sum: terms from 2 to 12, digits from 1 to 10, which is one level less ---
    curriculum = Curriculum("chain_sum", {"allow_negation": True})
    assert curriculum.last == 10
    for difficulty in range(11):
        terms, digits = 2 + difficulty, min(1 + difficulty, 10)
        assert curriculum.options(difficulty) == {
            "min_terms": terms,
            "max_terms": terms,
            "min_digits": digits,
            "max_digits": digits,
            "allow_negation": True,
        }


@pytest.mark.parametrize("fixed", [{"min_terms": 2}, {"min_terms": 2, "max_terms": 3}])
def test_what_is_set_does_not_rise(fixed):
    curriculum = Curriculum("basic_arithmetic", fixed)
    assert curriculum.last == 3
    assert curriculum.options(2) == {**fixed, "min_digits": 3, "max_digits": 3}


def test_single_options_rise_too():
    options = [Curriculum("bitwise_arithmetic", {}).options(d) for d in range(3)]
    assert options == [{"difficulty": 1}, {"difficulty": 2}, {"difficulty": 3}]


def test_a_last_level_that_repeats_the_one_before_is_left_out():
    # --- five levels, each difficulty takes two neighbours: the last two have the same two ---
    curriculum = Curriculum("count_bits", {})
    ends = [10, 1000, 10**6, 10**8, 2**31 - 1]
    options = [{"min_n": low, "max_n": high} for low, high in pairwise(ends)]
    options.append(options[-1])
    assert [curriculum.options(difficulty) for difficulty in range(5)] == options
    assert curriculum.last == 3


def test_options_are_not_shared():
    curriculum = Curriculum("chain_sum", {})
    curriculum.options(0)["min_terms"] = 99
    assert curriculum.options(0)["min_terms"] == 2


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("chain_sums", {}, r"--data.task.name: .*did you mean chain_sum"),
        (
            "composite",
            {"datasets": [{"name": "gcd", "weight": 1, "config": {}}]},
            r"--data.task.name: .*no curriculum for composite; use",
        ),
        ("chain_sum", {"terms": 2}, r"--data.task.config: chain_sum has no option 'terms'"),
        (
            "chain_sum",
            {"max_terms": 3, "min_digits": 1},
            r"nothing of chain_sum can rise; leave out some of max_digits, max_terms, min_digits,",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(name, config, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(name, config)
