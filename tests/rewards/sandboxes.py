"""The kinds of sandbox that work on this machine; at least one must, or nothing here is proved."""

from rlsgd.rewards import Bubblewrap, Landlock
from rlsgd.rewards.sandbox.session import SandboxError

REASONS: dict[str, str] = {}
WORKING = []
for kind in (Bubblewrap, Landlock):
    try:
        kind().check()
        WORKING.append(kind)
    except SandboxError as error:
        REASONS[kind.__name__] = str(error)
assert WORKING, f"no sandbox works here, install bubblewrap: {REASONS}"


def run_program(sandbox, program: str, *, given: str = "", seconds: float = 60):
    """What a program prints, and its exit code."""
    with sandbox.start("script", program.encode(), given.encode()) as session:
        session.wait_until_ready(seconds)
        return session.read_all(), session.exit_code()
