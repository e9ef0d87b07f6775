"""Every data set of reasoning_gym: its own answer gets full marks and garbage does not."""

import pytest
from reasoning_gym.factory import DATASETS

from rlsgd.core.problems import Problem
from rlsgd.rewards import ReasoningGymScore
from rlsgd.rewards.base import grade_safely
from rlsgd.rewards.reasoning_gym import build_dataset
from rlsgd.rewards.trial import try_reward

NAMES = sorted(set(DATASETS) - {"composite"})
REFUSED = {"coin_flip", "game_of_life_halting"}  # at the start of a run, by name


class Inline:
    """A scorer without a worker process."""

    reward = ReasoningGymScore()

    def score(self, completions, problems):
        from rlsgd.core.problems import Scores

        pairs = zip(completions, problems, strict=True)
        grades = [grade_safely(self.reward, *pair) for pair in pairs]
        return Scores([g.score for g in grades], {}, [g.failure for g in grades])


def test_there_are_one_hundred_and_five():
    assert len(NAMES) == 105


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_on_record_gets_full_marks_and_garbage_does_not(name):
    entry = build_dataset(name, {}, seed=1, size=1)[0]
    answer = "" if entry["answer"] is None else str(entry["answer"])
    metadata = {"source_dataset": name, "source_config": {}, "entry": entry}
    problem = Problem(entry["question"], answer, metadata)
    if name in REFUSED:
        with pytest.raises(ValueError, match=rf"--data.task.name {name}: its verifier gives"):
            try_reward(Inline(), [problem])
        return
    try_reward(Inline(), [problem])
    wrong = grade_safely(Inline.reward, "nan", problem)
    assert wrong.failure or wrong.score < 1.0
