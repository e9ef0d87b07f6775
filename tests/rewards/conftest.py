"""What attempts on the machine are after; and no verdict depends on how busy the machine is."""

import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

import rlsgd
from rlsgd.rewards import Scorer
from tests.rewards.processes import is_running


@pytest.fixture(autouse=True, scope="session")
def patience():
    """Wall clock without end, in the test's terms, unless a test sets it."""
    defaults = Scorer.__init__.__kwdefaults__
    before = defaults["timeout_seconds"]
    defaults["timeout_seconds"] = 600.0
    yield
    defaults["timeout_seconds"] = before


@pytest.fixture(scope="module")
def open_folder():
    """A folder that every user reaches."""
    with tempfile.TemporaryDirectory(prefix="rlsgd-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def surroundings(open_folder):
    """What the attempts are after, in reach of every user."""
    folder = Path(tempfile.mkdtemp(dir=open_folder))
    folder.chmod(0o755)
    (folder / "secret").write_text("done")
    victim = subprocess.Popen(["sleep", "600"])
    name = f"rlsgd-{victim.pid}"
    sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    sockets[0].bind("\0" + name)
    sockets[1].bind(str(folder / "socket"))
    package = Path(rlsgd.__file__).parent
    yield {
        "FOLDER": str(folder),
        "VICTIM": victim.pid,
        "NAME": name,
        "X86": os.uname().machine == "x86_64",
        "SOLUTIONS": str(package / "assets" / "small_programs.jsonl"),
        "SITE": str(Path(pytest.__file__).parents[1]),
        "CODE": rlsgd.__file__,
    }
    for each in sockets:
        each.close()
    assert is_running(victim.pid), "the victim was hit"
    victim.kill()
    victim.wait()
