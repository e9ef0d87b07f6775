"""A worker process and the main script of the run that started it."""

import os
import subprocess
import sys
from pathlib import Path

LIBRARY_REWARD = """
import os, sys
print("main script runs")
from tests.rewards.hostile_rewards import Hostile
from rlsgd.core.problems import Problem
from rlsgd.rewards import Scorer
if __name__ == "__main__":
    with Scorer(Hostile()) as scorer:
        print(scorer.score(["ok"], [Problem("q", "a")]))
"""
OWN_REWARD = """
print("main script runs")
from rlsgd.core.problems import Problem
from rlsgd.rewards import Reward, Scorer
class Own(Reward):
    def score(self, completion, problem):
        return 0.25
if __name__ == "__main__":
    with Scorer(Own()) as scorer:
        print(scorer.score(["ok"], [Problem("q", "a")]))
"""


def run_script(folder, text):
    script = folder / "train.py"
    script.write_text(text)
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1])])
    result = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return result.stdout


def test_worker_does_not_import_the_main_script(tmp_path):
    output = run_script(tmp_path, LIBRARY_REWARD)
    assert output.count("main script runs") == 1
    assert "rewards=[1.0]" in output


def test_reward_defined_in_the_main_script_works(tmp_path):
    output = run_script(tmp_path, OWN_REWARD)
    assert output.count("main script runs") == 1  # the worker's own prints go nowhere
    assert "rewards=[0.25]" in output
