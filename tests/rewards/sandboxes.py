"""Sandboxes and walls that work on this machine; one of each must, or nothing here is proved."""

from rlsgd.rewards import Bubblewrap, Landlock
from rlsgd.rewards.isolation import IsolatedWorker
from rlsgd.rewards.sandbox.session import SandboxError
from rlsgd.rewards.sandbox.walls import WALLS
from tests.rewards.hostile_rewards import Evaluates

REASONS: dict[str, str] = {}
WORKING = []
for kind in (Bubblewrap, Landlock):
    try:
        kind().check()
        WORKING.append(kind)
    except SandboxError as error:
        REASONS[kind.__name__] = str(error)
assert WORKING, f"no sandbox works here, install bubblewrap: {REASONS}"


def works(wall):
    worker = IsolatedWorker(Evaluates(), timeout_seconds=600, walls=[wall])
    try:
        worker.wait_until_ready()
    except ValueError:
        return False
    finally:
        worker.close()
    return True


WORKING_WALLS = [wall for wall in WALLS if works(wall)]
assert WORKING_WALLS, "no wall works here: install bubblewrap"
NAMES = [wall.name for wall in WORKING_WALLS]


def run_program(sandbox, program: str, *, given: str = "", seconds: float = 600):
    """What a program prints, and its exit code."""
    with sandbox.start("script", program.encode(), given.encode()) as session:
        session.wait_until_ready(seconds)
        return session.read_all(), session.exit_code()
