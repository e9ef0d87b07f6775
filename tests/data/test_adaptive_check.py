"""Levels that cannot be trained on are found when a run starts."""

import math
import random
import signal
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from reasoning_gym import factory
from reasoning_gym.dataset import ProceduralDataset

from rlsgd.data import AdaptiveReasoningGym
from rlsgd.data.tasks import processor_limit
from rlsgd.data.tasks.adaptive import Environment
from rlsgd.data.tasks.adaptive_check import check_level
from rlsgd.data.tasks.reasoning_gym import ReasoningGym


@pytest.mark.parametrize(
    ("name", "fails_at", "message"),
    [
        ("caesar_cipher", 2, r"config is not right for caesar_cipher: rotation must be .*"),
        (
            "letter_jumble",
            2,
            r"config: letter_jumble could not make a problem: ValueError: empty range .*",
        ),
        (
            "spell_backward",
            4,
            r"config: spell_backward could not make a problem: IndexError: Cannot choose .*",
        ),
    ],
)
def test_the_first_level_that_fails_is_named_with_what_leaves_it_out(name, fails_at, message):
    whole = rf"^--data\.task\.environments\.own\.{message}\(at difficulty {fails_at}; "
    whole += rf"max_difficulty {fails_at - 1} leaves it out\)$"
    with pytest.raises(ValueError, match=whole):
        AdaptiveReasoningGym({"own": Environment(name)})
    with pytest.raises(ValueError, match=whole):  # whichever environment it is
        AdaptiveReasoningGym({"gcd": Environment(), "own": Environment(name)})
    task = AdaptiveReasoningGym({"own": Environment(name, max_difficulty=fails_at - 1)})
    assert len(task.train_problems(seed=0, epoch=0, count=3)) == 3


def test_a_level_that_fails_at_0_has_no_way_out(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    message = r"^--data\.task\.environments\.knight_swap\.config is .*>= 6 \(at difficulty 0\)$"
    with pytest.raises(ValueError, match=message):
        AdaptiveReasoningGym({"knight_swap": Environment()})


def test_a_level_that_never_ends_is_named(monkeypatch):
    monkeypatch.setattr(processor_limit, "MOST_SECONDS", 0.5)
    message = (
        r"^--data\.task\.environments\.puzzle24\.config: puzzle24 took more than 20 seconds of "
        r"processor time for one problem \(at difficulty 3; max_difficulty 2 leaves it out\)$"
    )
    with pytest.raises(ValueError, match=message):
        AdaptiveReasoningGym({"puzzle24": Environment()})


@dataclass
class CrookedConfig:
    score: float = 1.0
    answer: str | None = "42"
    seed: int = 0
    size: int = 10

    def validate(self):
        pass


class Crooked(ProceduralDataset):
    """Gives any answer the score of its config; raises where that is negative."""

    def __getitem__(self, index):
        return {"question": str(self.seed + index), "answer": self.config.answer, "metadata": {}}

    def score_answer(self, answer, entry):
        if self.config.score < 0:
            raise RuntimeError(f"no score for {answer}")
        return self.config.score


@pytest.fixture
def crooked(monkeypatch):
    monkeypatch.setitem(factory.DATASETS, "crooked", (Crooked, CrookedConfig))
    return lambda **config: ReasoningGym("crooked", config)


def test_its_own_answer_must_get_full_marks(crooked):
    check_level(crooked())
    for score in (0.0, 0.99, 2.0, math.nan, math.inf):
        message = rf"config: crooked gives its own answer '42' the score {score:g}, not 1$"
        with pytest.raises(ValueError, match=message):
            check_level(crooked(score=score))
    message = r"config: crooked could not score the answer '42': RuntimeError: no score for 42$"
    with pytest.raises(ValueError, match=message):
        check_level(crooked(score=-1.0))


def test_a_score_that_takes_for_ever_is_named(crooked, monkeypatch):
    def never(self, answer, entry):
        while True:
            pass

    monkeypatch.setattr(processor_limit, "MOST_SECONDS", 0.2)
    monkeypatch.setattr(Crooked, "score_answer", never)
    with pytest.raises(ValueError, match="crooked could not score the answer '42': TooSlow"):
        check_level(crooked())


def test_a_problem_that_takes_for_ever_ends_training_with_its_name(monkeypatch):
    """Also one that is first met when the level was found good at the start."""
    task = AdaptiveReasoningGym({"sums": Environment("chain_sum", max_difficulty=1)})

    def never(self, index):
        while True:
            try:
                while True:
                    pass
            except Exception:
                continue

    monkeypatch.setattr(processor_limit, "MOST_SECONDS", 0.2)
    monkeypatch.setattr(factory.DATASETS["chain_sum"][0], "__getitem__", never)
    message = r"^--data\.task\.environments\.sums\.config: chain_sum took .*\(at difficulty 0\)$"
    with pytest.raises(ValueError, match=message):
        task.train_problems(seed=0, epoch=0, count=1)


def test_without_an_answer_on_record_the_score_must_be_finite(crooked):
    check_level(crooked(answer=None, score=0.0))
    with pytest.raises(ValueError, match="crooked gives its own answer '' the score nan"):
        check_level(crooked(answer=None, score=math.nan))
    with pytest.raises(ValueError, match="crooked could not score the answer 'x'"):
        check_level(crooked(answer=None, score=-1.0))


def test_a_check_leaves_random_numbers_and_timers_as_they_were():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    handler = signal.getsignal(signal.SIGVTALRM)
    check_level(ReasoningGym("rubiks_cube"))  # draws from the global generators
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before
    assert signal.getsignal(signal.SIGVTALRM) == handler
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_a_check_works_in_a_thread():
    """Where Python allows no signals."""
    failures = []

    def check():
        try:
            check_level(ReasoningGym("gcd"))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert failures == []


def test_a_level_that_fails_in_training_is_named_too(monkeypatch):
    task = AdaptiveReasoningGym({"sums": Environment("chain_sum", max_difficulty=1)})
    made = iter(range(5))

    def item(self, index):
        if next(made) == 4:
            raise IndexError("nothing left")
        return {"question": str(index), "answer": "1", "metadata": {}}

    dataset = factory.DATASETS["chain_sum"][0]
    monkeypatch.setattr(dataset, "__getitem__", item)
    message = (
        r"^--data\.task\.environments\.sums\.config: chain_sum could not make a problem: "
        r"IndexError: nothing left \(at difficulty 0\)$"
    )
    with pytest.raises(ValueError, match=message):
        task.train_problems(seed=0, epoch=0, count=9)
