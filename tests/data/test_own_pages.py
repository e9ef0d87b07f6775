"""The functions of the page on rewards, as they stand there."""

import re
from pathlib import Path

from rlsgd.core.problems import Problem
from rlsgd.rewards import as_reward

PAGE = Path("docs/rewards.md").read_text()


def test_the_functions_that_are_shown_score():
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    problem = Problem("2+2?", "4")
    shorter = as_reward(names["shorter"])
    assert shorter.score("4", problem) == 1 - 0.001
    rank = as_reward(names["rank"])
    assert list(rank.score_batch(["bbb", "a", "cc"], [problem] * 3)) == [-2 / 3, 0, -1 / 3]
