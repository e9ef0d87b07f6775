"""`rlsgd fit` in forks of one process that has imported everything (tools/fork_server.py)."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path[:0] = [str(TOOLS), str(Path(__file__).parents[1] / "algorithms")]

from fork_server import ForkServer  # noqa: E402


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()
