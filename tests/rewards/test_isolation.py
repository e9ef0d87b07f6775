"""A worker process, the main script of the run that started it, and its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlsgd.rewards.isolation import IsolatedWorker
from rlsgd.rewards.sandbox.walls import NoWall
from tests.rewards.hostile_rewards import HangsInPrepare
from tests.rewards.processes import descendants, wait_for_end
from tests.rewards.sandboxes import NAMES, WORKING_WALLS

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


# Prints a line when a worker hangs: in its reward's `prepare`, or in a fork that grades.
TRAINER = """
import os, time
from rlsgd.core.problems import Problem
from rlsgd.rewards.isolation import IsolatedWorker
from rlsgd.rewards.sandbox import walls
from tests.rewards import hostile_rewards
reward = hostile_rewards.{reward}()
worker = IsolatedWorker(reward, timeout_seconds=600, walls=[walls.{wall}])
if {prepares}:
    assert worker._process.stderr.readline() == b"preparing\\n"
else:
    worker.wait_until_ready()
print("hangs", flush=True)
worker.grade([("__import__('time').sleep(600)", Problem("q", "1"))])
"""


@pytest.mark.parametrize("reward", ["Evaluates", "HangsInPrepare"])
@pytest.mark.parametrize("wall", [*WORKING_WALLS, NoWall], ids=[*NAMES, NoWall.name])
def test_a_worker_ends_with_the_process_that_started_it(wall, reward):
    prepares = reward == "HangsInPrepare"
    program = TRAINER.format(wall=wall.__name__, reward=reward, prepares=prepares)
    command = [sys.executable, "-c", program]
    root = str(Path(__file__).parents[2])
    expected = (4 if wall.name == "Bubblewrap" else 2) + (not prepares)  # itself, and a fork
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout.readline() == "hangs\n"
        started = []
        while len(started) < expected:
            started = descendants(parent.pid)
        parent.kill()
    wait_for_end(started[1:])


@pytest.mark.parametrize("wall", [*WORKING_WALLS, NoWall], ids=[*NAMES, NoWall.name])
def test_a_reward_that_hangs_in_prepare_is_to_blame_and_not_the_wall(wall, monkeypatch):
    monkeypatch.setattr("rlsgd.rewards.isolation.START_UP_SECONDS", 2)
    worker = IsolatedWorker(HangsInPrepare(), timeout_seconds=600, walls=[wall])
    assert worker._process.stderr.readline() == b"preparing\n"
    started = descendants(worker._process.pid)
    with pytest.raises(ValueError, match=r"could not be started .* no word for 2 s"):
        worker.wait_until_ready()
    worker.close()
    wait_for_end(started)
