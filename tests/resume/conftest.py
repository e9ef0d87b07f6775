"""`rlsgd fit` in forks of one process that has imported everything (benchmarks/fork_server.py)."""

from collections.abc import Iterator

import pytest

from benchmarks.fork_server import ForkServer


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()
