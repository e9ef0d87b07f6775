import random

import numpy as np
import pytest

from rlsgd.data.tasks import ReasoningGym
from rlsgd.rewards import ReasoningGymScore

SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def questions(problems):
    return [problem.question for problem in problems]


@pytest.fixture
def small():
    return ReasoningGym("chain_sum", SMALL)


def test_training_is_a_function_of_seed_and_epoch(small):
    first = small.train_problems(seed=3, epoch=5, count=20)
    small.train_problems(seed=3, epoch=6, count=20)
    small.validation_problems(4)
    assert ReasoningGym("chain_sum", SMALL).train_problems(seed=3, epoch=5, count=20) == first


def test_neighbouring_seeds_and_epochs_share_no_stream():
    # reasoning_gym's item i depends on seed + i alone: seeds 0 and 1 would share all but one item.
    task = ReasoningGym("chain_sum", {"min_digits": 6, "max_digits": 6})
    draws = [
        set(questions(task.train_problems(seed=seed, epoch=epoch, count=40)))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set.union(*draws)) == 9 * 40


@pytest.mark.parametrize("config", [SMALL, {}])
def test_the_three_sets_are_disjoint(config):
    task = ReasoningGym("chain_sum", config)
    validation = set(questions(task.validation_problems(200)))
    test = set(questions(task.test_problems(200)))
    train = {
        question
        for seed in range(4)
        for epoch in range(4)
        for question in questions(task.train_problems(seed=seed, epoch=epoch, count=40))
    }
    assert validation
    assert test
    assert not validation & test
    assert not train & (validation | test)


def test_small_space_is_split_whole_and_without_repeats(small):
    # --- one-digit a + b or a - b: 10 x 10 x 2 = 200 questions at most ---
    validation = questions(small.validation_problems(200))
    assert len(validation) == len(set(validation)) < 100
    train = set(questions(small.train_problems(seed=0, epoch=0, count=3000)))
    test = set(questions(small.test_problems(200)))
    assert len(train | test | set(validation)) == len(train) + len(test) + len(validation) > 160
    for question in train:
        assert small.split_of(question) == "train"


def test_validation_does_not_depend_on_the_run(small):
    assert small.validation_problems(10) == ReasoningGym("chain_sum", SMALL).validation_problems(10)
    other = ReasoningGym("chain_sum", SMALL, validation_seed=1).validation_problems(10)
    assert questions(other) != questions(small.validation_problems(10))


def test_counts_are_met(small):
    assert len(small.train_problems(seed=0, epoch=0, count=33)) == 33
    assert len(small.validation_problems(7)) == 7
    assert small.validation_problems(0) == []


def test_problems_carry_what_their_scorer_needs(small):
    reward = small.default_reward()
    assert isinstance(reward, ReasoningGymScore)
    for problem in small.train_problems(seed=0, epoch=0, count=5):
        assert problem.metadata["source_config"] == SMALL
        assert reward.score(f" {problem.answer}\n", problem) == 1.0
        assert reward.score("1000", problem) == 0.0


def test_data_sets_that_read_their_size_at_construction_work():
    task = ReasoningGym("gsm_symbolic")  # indexes past its `size` otherwise
    assert len(set(questions(task.train_problems(seed=0, epoch=1, count=10)))) == 10


def test_generators_that_use_global_randomness_are_pure_and_leave_it_alone():
    # --- list_functions draws from `random`, pool_matrix calls `numpy.random.seed` ---
    for name in ("list_functions", "pool_matrix"):
        task = ReasoningGym(name)
        random.seed(1)
        np.random.seed(1)
        before = task.train_problems(seed=0, epoch=0, count=20)
        drawn = random.random(), np.random.rand()
        random.seed(1)
        np.random.seed(1)
        assert drawn == (random.random(), np.random.rand())
        assert task.train_problems(seed=0, epoch=0, count=20) == before


def test_answers_that_are_not_on_record_are_empty():
    problems = ReasoningGym("graph_color").train_problems(seed=0, epoch=0, count=2)
    assert [problem.answer for problem in problems] == ["", ""]


def test_a_space_too_small_to_share_is_an_error():
    # --- at most 200 questions, of which 99.8% are held out: less than one for training ---
    task = ReasoningGym("chain_sum", SMALL, held_out_fraction=0.998)
    with pytest.raises(ValueError, match=r"--data.task.name: chain_sum gave only 0 of 2 train"):
        task.train_problems(seed=0, epoch=0, count=2)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_held_out_fraction_is_checked(fraction):
    with pytest.raises(ValueError, match=r"--data.task.held_out_fraction must be between 0 and 1"):
        ReasoningGym("chain_sum", held_out_fraction=fraction)


def test_unknown_name_and_option_fail_at_construction():
    with pytest.raises(ValueError, match=r"--data.task.name.*did you mean chain_sum"):
        ReasoningGym("chain_sums")
    with pytest.raises(ValueError, match=r"--data.task.config.*did you mean min_terms"):
        ReasoningGym("chain_sum", {"min_term": 2})
    with pytest.raises(ValueError, match=r"--data.reward.extract"):
        ReasoningGym("chain_sum", extract="tag")  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ransom_note", {}),
        ("composite", {"datasets": [{"name": "ransom_note", "weight": 1, "config": {}}]}),
    ],
)
def test_data_sets_that_depend_on_the_hash_seed_need_a_fixed_one(monkeypatch, name, config):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ValueError, match=r"--data.task.name: .* ransom_note .*HASHSEED=0"):
        ReasoningGym(name, config)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(ReasoningGym(name, config).train_problems(seed=0, epoch=0, count=2)) == 2
