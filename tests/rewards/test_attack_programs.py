"""A second suite of attempts: each succeeds in plain Python, and fails in every sandbox."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlsgd.rewards import AssertTests, Landlock, StdioTests
from tests.rewards.attacks import NOT_FOR_ALL, PROGRAMS, program_of
from tests.rewards.processes import descendants, is_running, wait_for_end
from tests.rewards.sandboxes import WORKING, run_program

KINDS = [kind.__name__ for kind in WORKING]


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


# Prints how many threads it could start; with all of them it waits for its end.
THREADS = """
import _thread, os
_thread.stack_size(32768)
lock = _thread.allocate_lock()
lock.acquire()
for number in range(1, 601):
    try: _thread.start_new_thread(lock.acquire, ())
    except RuntimeError: break
while WAITS and number == 600: lock.acquire()
print(number, flush=True)
os._exit(0)
"""


def test_threads_are_few_and_their_kernel_memory_with_them():
    plain = [sys.executable, "-c", f"WAITS = False\n{THREADS}"]
    assert int(subprocess.check_output(plain)) == 600
    for kind in WORKING:
        honest = THREADS.replace("601", "201")
        assert run_program(kind(), f"WAITS = True\n{honest}") == (b"200\n", 0)
        output, _ = run_program(kind(), f"WAITS = True\n{THREADS}")
        assert int(output or 0) <= 256


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
