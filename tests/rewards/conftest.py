"""No verdict of these tests depends on how busy the machine is."""

import pytest

from rlsgd.rewards import Scorer


@pytest.fixture(autouse=True, scope="session")
def patience():
    """Wall clock without end, in the test's terms, unless a test sets it."""
    defaults = Scorer.__init__.__kwdefaults__
    before = defaults["timeout_seconds"]
    defaults["timeout_seconds"] = 600.0
    yield
    defaults["timeout_seconds"] = before
