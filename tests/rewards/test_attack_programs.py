"""A second suite of attempts: by root and by nobody, in a venv and with a copied system Python.

Each is shown to succeed in plain Python, and to fail in every kind of sandbox that works here.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import rlsgd
from rlsgd.rewards import AssertTests, Landlock, StdioTests
from rlsgd.rewards.sandbox.base import NOBODY
from tests.rewards.attacks import NOT_FOR_ALL, PROGRAMS, TEXTS, program_of
from tests.rewards.sandboxes import WORKING, run_program
from tests.rewards.test_sandbox_attacks import is_running

KINDS = [kind.__name__ for kind in WORKING]
# Reads a program; prints what it printed in a sandbox of the kind, with the installation's Python.
RUN = """
import json, sys
from rlsgd.rewards import Bubblewrap, Landlock
kind, text = json.load(sys.stdin)
with {"Bubblewrap": Bubblewrap, "Landlock": Landlock}[kind](cpu_seconds=60).start(
    "script", text.encode(), b""
) as session:
    session.wait_until_ready(600)
    print(session.read_all().decode(), session.exit_code(), sys.prefix, sys.base_prefix)
"""


# Reads texts; prints the scores that a verifier gives them, which evaluates them behind a wall.
RUN_TEXTS = """
import json, sys
from hostile_rewards import Evaluates
from rlsgd.core.problems import Problem
from rlsgd.rewards.isolation import IsolatedWorker
from rlsgd.rewards.sandbox import walls
kind, texts, names = json.load(sys.stdin)
worker = IsolatedWorker(
    Evaluates(), timeout_seconds=600, walls=[getattr(walls, f"{kind}Wall")]
)
right, wrong = ("6 * 7", Problem("q", "42")), ("6 * 8", Problem("q", "42"))
problem = Problem("q", "'done'", {"names": names})
grades = worker.grade([item for text in texts for item in ((text, problem), right, wrong)])
worker.close()
print(json.dumps([grade.score for grade in grades]))
"""


@pytest.fixture(scope="module")
def open_folder():
    """A folder that every user reaches."""
    with tempfile.TemporaryDirectory(prefix="rlsgd-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def installations(open_folder):
    """A copied system Python with this package in its own site-packages, and a venv of it."""
    system = open_folder / "system"
    library = Path(os.__file__).parent
    left_out = shutil.ignore_patterns(
        "site-packages", "dist-packages", "test", "config-*", "__pycache__", "ensurepip"
    )
    copy = system / sys.platlibdir / library.name
    shutil.copytree(library, copy, ignore=left_out)
    (system / "bin").mkdir()
    python = system / "bin" / "python3"
    shutil.copy2(os.path.realpath(sys.executable), python)
    for path in Path(sys.base_prefix, "lib").glob("libpython*.so.*"):
        shutil.copy2(path, system / "lib" / path.name)
    package = copy / "site-packages" / "rlsgd"
    shutil.copytree(Path(rlsgd.__file__).parent, package, ignore=left_out)
    shutil.copy2(Path(__file__).with_name("hostile_rewards.py"), copy / "site-packages")
    env = {"LD_LIBRARY_PATH": str(system / "lib")}
    venv = open_folder / "venv"
    command = [python, "-m", "venv", "--without-pip", "--system-site-packages", venv]
    subprocess.run(command, check=True, env=env)
    for path in open_folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    return {"copied system Python": python, "venv": venv / "bin" / "python"}, env, package


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


def state_of(surroundings):
    victim = surroundings["VICTIM"]
    folder = Path(surroundings["FOLDER"])
    return (
        {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()},
        os.sched_getscheduler(victim),
        is_running(victim),
    )


def test_the_suite_is_large():
    assert len(PROGRAMS) >= 40


def test_attempts_succeed_without_a_wall(surroundings, tmp_path):
    """In plain Python, and in a folder of the test."""
    command = [sys.executable, "-I", "-c", program_of(surroundings)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    missing = PROGRAMS.keys() - set(found.stdout.splitlines())
    assert missing <= NOT_FOR_ALL, found.stderr
    if os.geteuid() == 0:
        assert "write a kernel setting" not in missing


@pytest.mark.parametrize("kind", WORKING, ids=KINDS)
def test_every_attempt_is_refused(kind, surroundings):
    before = state_of(surroundings)
    output, code = run_program(kind(cpu_seconds=60), program_of(surroundings), seconds=600)
    assert (output.decode().splitlines(), code) == ([], 0)
    assert state_of(surroundings) == before


@pytest.mark.parametrize("user", [None, NOBODY], ids=["own user", "nobody"])
@pytest.mark.parametrize("where", ["copied system Python", "venv"])
@pytest.mark.parametrize("kind", KINDS)
def test_wherever_python_comes_from_and_whoever_trains(
    kind, where, user, installations, surroundings, open_folder
):
    """The tests and solutions lie in `base_prefix` here."""
    pythons, env, package = installations
    surroundings |= {"CODE": str(package / "__init__.py"), "SITE": str(package.parent)}
    surroundings["SOLUTIONS"] = str(package / "assets" / "small_programs.jsonl")
    given = [kind, program_of(surroundings)]
    *succeeded, last = run_as(user, [pythons[where], "-c", RUN], given, env, open_folder)
    assert succeeded == []
    assert last.split()[:2] == ["0", str(pythons[where].parents[1])]
    texts = {name: text for name, text in TEXTS.items() if name not in ("connect", "home")}
    given = [kind, list(texts.values()), surroundings | {"SCRATCH": None, "PORT": 0, "HOME": "/"}]
    (scores,) = run_as(user, [pythons[where], "-c", RUN_TEXTS], given, env, open_folder)
    assert json.loads(scores) == [0.0, 1.0, 0.0] * len(texts)


def run_as(user, command, given, env, open_folder):
    """The lines that a command prints, run by a user with a home folder of its own."""
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    home = Path(tempfile.mkdtemp(dir=open_folder))
    if user is not None:
        os.chown(home, user, user)
    more = {"HOME": str(home), "TMPDIR": str(home), "PATH": os.environ["PATH"]}
    found = subprocess.run(
        command,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env={**env, **more, "RLSGD_SECRET": "done"},
        cwd="/",
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        timeout=600,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


KILLER = """
import fcntl, os
reader, writer = os.pipe()
fcntl.fcntl(reader, 8, VICTIM)    # F_SETOWN
fcntl.fcntl(reader, 10, 9)        # F_SETSIG: SIGKILL
fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
os.write(writer, b"x")
"""


def test_the_owner_of_a_pipe_is_killed_without_a_wall_and_lives_behind_it():
    for run in (None, *WORKING):
        victim = subprocess.Popen(["sleep", "600"])
        program = f"VICTIM = {victim.pid}\n{KILLER}"
        if run is None:
            subprocess.run([sys.executable, "-c", program], check=True)
            assert victim.wait(timeout=60) == -signal.SIGKILL
            continue
        _, code = run_program(run(), program)
        assert code != 0
        assert is_running(victim.pid)
        victim.kill()
        victim.wait()


LEAVES_CHILDREN = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: time.sleep(600)
        os._exit(0)
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", WORKING, ids=KINDS)
def test_whatever_a_program_starts_ends_with_it_also_without_the_filter(kind, monkeypatch):
    """The second wall: a process namespace, or a supervisor that orphans come to."""
    import struct

    allow_all = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    monkeypatch.setattr("rlsgd.rewards.sandbox.base.seccomp_filter", lambda: allow_all)
    with kind().start("script", LEAVES_CHILDREN.encode(), b"") as session:
        session.wait_until_ready(600)
        assert session.read_line()
        first = session._process.pid
        seen = descendants(first)
        while len(seen) < (5 if kind is Landlock else 4):
            seen = descendants(first)
    wait_for_end(seen)


def wait_for_end(processes):
    """Until the kernel has ended them all; the limit is that of the test."""
    while any(map(is_running, processes)):
        time.sleep(0.01)


def descendants(process):
    found = [process]
    for number in found:
        for task in Path(f"/proc/{number}/task").glob("*"):
            found += map(int, (task / "children").read_text().split())
    return found


NAIVE = """
try:
    exec(PROGRAM)
    print('pass' if square(3) == 9 else 'fail')
except BaseException: pass
"""
# Programs that deceive a checker in their own process.
CHECKERS = {
    "verdicts on every channel": (
        "import os\n"
        "for channel in range(1, 64):\n"
        "    try: os.write(channel, b'pass\\n')\n"
        "    except OSError: pass\n"
        "os._exit(0)"
    ),
    "answers to every call": (
        "import os\n"
        "for channel in range(1, 64):\n"
        "    try: os.write(channel, b'{\"value\": 4}\\npass\\n')\n"
        "    except OSError: pass\n"
        "def square(x): os._exit(0)"
    ),
    "equal to everything": (
        "class Equal(int):\n    __eq__ = lambda *_: True\n    __hash__ = int.__hash__\n"
        "square = lambda x: Equal(0)"
    ),
    "patched print": (
        "import builtins\nreal = print\n"
        "builtins.print = lambda *_: real('pass')\nsquare = lambda x: 0"
    ),
}


@pytest.mark.parametrize("name", CHECKERS)
def test_a_checker_outside_is_not_deceived(name):
    from rlsgd.core.problems import Problem

    cheat = CHECKERS[name]
    naive = [sys.executable, "-c", f"PROGRAM = {cheat!r}\n{NAIVE}"]
    assert "pass" in subprocess.run(naive, capture_output=True, text=True).stdout
    problem = Problem("q", "a", {"columns": {"test": ["assert square(3) == 9"]}})
    for kind in WORKING:
        reward = AssertTests(sandbox=kind(), seconds=600)
        assert reward.score(cheat, problem) == 0
        assert reward.score("def square(x): return x * x", problem) == 1


def test_large_arguments_and_values_cross():
    from rlsgd.core.problems import Problem

    test = "text = 'x' * 2**21\nassert same(text) == text\nassert same([1] * 2**19)[-1] == 1"
    problem = Problem("q", "a", {"columns": {"test": [test]}})
    for kind in WORKING:
        reward = AssertTests(sandbox=kind(cpu_seconds=60), seconds=600)
        assert reward.score("def same(x): return x", problem) == 1
        assert reward.score("def same(x): return 'x'", problem) == 0


def test_tests_that_pass_more_than_the_limit_say_so(monkeypatch):
    from rlsgd.core.problems import Problem

    monkeypatch.setattr("rlsgd.rewards.code_asserts.MESSAGES_KB", 1)
    problem = Problem("q", "a", {"columns": {"test": ["assert same('x' * 2000)"]}})
    with pytest.raises(ValueError, match="the tests pass more than"):
        AssertTests(sandbox=WORKING[0](), seconds=600).score("same = lambda x: x", problem)


@pytest.mark.parametrize("kind", WORKING, ids=KINDS)
def test_right_programs_score_as_before(kind):
    """What the walls must leave: threads, asyncio, a file where there is scratch, big integers."""
    from rlsgd.core.problems import Problem

    program = (
        "import asyncio, threading, sqlite3, hashlib, decimal, random, tempfile, uuid, ssl\n"
        "thread = threading.Thread(target=print, args=('one',)); thread.start(); thread.join()\n"
        "async def two(): await asyncio.sleep(0); print('two')\n"
        "asyncio.run(two())\n"
        "print(sqlite3.connect(':memory:').execute('select 3').fetchone()[0])"
    )
    case = {"tests": [{"input": "", "output": "one\ntwo\n3"}]}
    reward = StdioTests(sandbox=kind(cpu_seconds=60), seconds=600)
    assert reward.score(program, Problem("q", "a", {"columns": case})) == 1
