"""Programs that attack the machine: each is contained, and scores 0.

Every attack is small enough to do no harm where it succeeds, and each is shown to succeed in a
program without a sandbox: otherwise its failure would prove nothing.
"""

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlsgd.core.problems import Problem
from rlsgd.rewards import Bubblewrap, StdioTests, Unsandboxed
from tests.rewards.processes import is_running
from tests.rewards.sandboxes import WORKING, run_program

MEMORY_MB = 256
IMPORTS = "import ctypes, multiprocessing, os, resource, signal, socket, subprocess, sys, time\n"
# An attempt succeeds if it ends without an exception. Names in capitals stand for folders, a
# process and a port of the test.
ATTEMPTS = {
    "fork": "if os.fork() == 0: os._exit(0)",
    "fork, raw": (
        "number = ctypes.CDLL(None).syscall(56 if X86 else 220, 17, 0, 0, 0, 0)\n"
        "if number == 0: os._exit(0)\nmust(number > 0)"
    ),
    "fork by clone3": (
        "arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)\n"
        "number = ctypes.CDLL(None).syscall(435, arguments, 88)\n"
        "if number == 0: os._exit(0)\nmust(number > 0)"
    ),
    "subprocess": "subprocess.run(['/bin/true'])",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "multiprocessing": (
        "process = multiprocessing.get_context('fork').Process(target=int)\n"
        "process.start(); process.join()"
    ),
    "processor limit": "resource.setrlimit(resource.RLIMIT_CPU, (600, 600))",
    "limits of another process": "resource.prlimit(VICTIM, resource.RLIMIT_NOFILE)",
    "slow another process down": "os.setpriority(os.PRIO_PROCESS, VICTIM, 19)",
    "cores of another process": "os.sched_setaffinity(VICTIM, os.sched_getaffinity(0))",
    "trace another process": "must(ctypes.CDLL(None).ptrace(16, VICTIM, None, None) == 0)",
    "signal another process": "os.kill(VICTIM, 0)",
    "signal the parent": "os.kill(os.getppid(), 0)",
    "signal by a descriptor": "signal.pidfd_send_signal(os.pidfd_open(VICTIM), 0)",
    "home folder": "must(os.listdir(HOME) is not None)",
    "read": "must(open(FOLDER + '/secret').read() == 'done')",
    "read through proc": "must(open('/proc/self/root' + FOLDER + '/secret').read() == 'done')",
    "read through a process": (
        "must(open(f'/proc/{VICTIM}/root' + FOLDER + '/secret').read() == 'done')"
    ),
    "environment": "os.environ['RLSGD_SECRET']",
    "environment of another process": (
        "must('RLSGD_SECRET' in open(f'/proc/{VICTIM}/environ').read())"
    ),
    "environment of a parent": (
        "must(any('RLSGD_SECRET' in open(f'/proc/{number}/environ').read()\n"
        "         for number in (1, os.getppid())))"
    ),
    "connect": "socket.create_connection(('127.0.0.1', PORT), timeout=5).close()",
    "send": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "connect locally": "socket.socket(socket.AF_UNIX).connect('\\0rlsgd-%d' % PORT)",
    "write": "open(FOLDER + '/new', 'w').write('x')",
    "write elsewhere": "open('/var/tmp/rlsgd-%d' % VICTIM, 'w').write('x')",
    "write over": "open(FOLDER + '/1', 'r+').write('x')",
    "truncate": "os.truncate(FOLDER + '/2', 0)",
    "truncate on opening": "os.open(FOLDER + '/3', os.O_RDONLY | os.O_TRUNC)",
    "delete": "os.unlink(FOLDER + '/4')",
    "rename": "os.rename(FOLDER + '/5', FOLDER + '/6')",
    "link": "os.link(FOLDER + '/1', FOLDER + '/7')",
    "symbolic link": "os.symlink('secret', FOLDER + '/8')",
    "folder": "os.mkdir(FOLDER + '/9')",
    "remove a folder": "os.rmdir(FOLDER + '/empty')",
    "pipe": "os.mkfifo(FOLDER + '/pipe')",
    "character device": "os.mknod(FOLDER + '/null', 0o20600, os.makedev(1, 3))",
    "block device": "os.mknod(FOLDER + '/disk', 0o60600, os.makedev(7, 0))",
    "write to shared memory's folder": "open('/dev/shm/rlsgd-%d' % VICTIM, 'w').write('x')",
    "write to the root folder": "os.mkdir('/rlsgd-%d' % VICTIM)",
    "folder of the trainer": "must(os.getcwd() not in ('/', '/tmp'))",
    "capabilities": (
        "rights = (ctypes.c_uint32 * 6)()\n"
        "must(ctypes.CDLL(None).capget((ctypes.c_uint32 * 2)(0x20080522, 0), rights) == 0)\n"
        "must(rights[0])"
    ),
    "rights": "os.chmod(FOLDER + '/1', 0o777)",
    "owner": "os.chown(FOLDER + '/1', 1, 1)",
    "times": "os.utime(FOLDER + '/1', (1, 1))",
    "attributes": "os.setxattr(FOLDER + '/1', 'user.x', b'x')",
    "write to Python's files": "open(os.__file__, 'a')",
    "fill the disk": "for i in range(5): open(f'fill-{i}', 'wb').write(bytes(10**6))",
    "shared memory": (
        "segment = ctypes.CDLL(None).shmget(0, 2**20, 0o600 | 0o1000)\n"
        "must(segment >= 0)\nctypes.CDLL(None).shmctl(segment, 0, None)"
    ),
    "shared memory of another process": (
        "attach = ctypes.CDLL(None).shmat\n"
        "attach.restype = ctypes.c_void_p\n"
        "address = attach(SEGMENT, None, 0o10000)\n"
        "must(address != ctypes.c_void_p(-1).value and ctypes.string_at(address, 4) == b'done')"
    ),
    "memory file": "os.memfd_create('x')",
    "namespace": "must(ctypes.CDLL(None).unshare(0x10000000) == 0)",
}
# These need rights that not everyone who runs the tests has, or a leak in the launcher.
NOT_FOR_ALL = {
    *("processor limit", "trace another process", "owner", "attributes", "namespace"),
    *("environment", "environment of a parent", "write to Python's files", "capabilities"),
    *("character device", "block device", "write to the root folder"),
}
# What bubblewrap's namespaces and mounts refuse without the filter of system calls.
OF_NAMESPACES = {
    *("limits of another process", "slow another process down", "cores of another process"),
    *("trace another process", "signal another process", "signal by a descriptor", "capabilities"),
    *("home folder", "read", "read through proc", "read through a process", "environment"),
    *("environment of another process", "environment of a parent"),
    *("connect", "connect locally", "write", "write elsewhere", "write over", "truncate"),
    *("truncate on opening", "delete", "rename", "link", "symbolic link", "folder"),
    *("remove a folder", "pipe", "character device", "block device", "rights", "owner", "times"),
    *("attributes", "write to Python's files", "fill the disk", "folder of the trainer"),
    *("shared memory of another process", "write to shared memory's folder"),
    *("write to the root folder", "processor limit"),
}
ATTEMPT_ALL = """
def must(condition):
    if not condition: raise OSError
for attempt_name, attempt in ATTEMPTS.items():
    try: exec(attempt)
    except BaseException: continue
    print(attempt_name, flush=True)
"""
# Programs that must not score, although the right output is `done`.
SCORED = {
    "fork bomb": "for _ in range(5): os.fork()\nprint('done')",  # 2**5 processes at most
    "memory bomb": f"block = bytearray({MEMORY_MB * 2**20}); print('done')",
    "memory in pieces": f"blocks = [bytearray(2**20) for _ in range({MEMORY_MB})]; print('done')",
    "reading the answer": "print(open(FOLDER + '/secret').read())",
    "asking for the answer": (
        "server = socket.create_connection(('127.0.0.1', PORT), timeout=5)\n"
        "print(server.recv(4).decode())"
    ),
    "answer in the environment": "print(os.environ['RLSGD_SECRET'])",
    "writing outside": "open(FOLDER + '/secret', 'w').write('x'); print('done')",
    "killing the parent": "os.kill(os.getppid(), 9); print('done')",
    "killing a process": "os.kill(VICTIM, 9); print('done')",
    "huge output": "print('done')\nwhile True: sys.stdout.write('x' * 2**16)",
    "huge white space": "print('done')\nwhile True: sys.stdout.write(' ' * 2**16)",
    "exit 0 early": "sys.exit(0)\nprint('done')",
    "exit 0 at once": "os._exit(0)\nprint('done')",
    "failure after the answer": "print('done'); sys.exit(1)",
    "another program": "os.execv('/bin/echo', ['echo', 'done'])",
    "crash after the answer": "print('done', flush=True); ctypes.string_at(0)",
}
ENDLESS = {
    "late answer": "time.sleep(60)\nprint('done')",
    "infinite loop": "while True: pass",
    "sleep": "time.sleep(600)",
    "loop after the answer": "print('done', flush=True)\nwhile True: pass",
    "sleep with its output closed": "print('done', flush=True); os.close(1); time.sleep(600)",
    "deaf loop": (
        "for number in {*range(1, 32)} - {9, 19}: signal.signal(number, signal.SIG_IGN)\n"
        "while True: pass"
    ),
    "loop in a thread": (
        "import threading\nprint('done', flush=True)\n"
        "threading.Thread(target=lambda: exec('while True: pass')).start()"
    ),
}


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """What the attacks are after: in reach of any process of this user."""
    monkeypatch.setenv("RLSGD_SECRET", "done")
    for name in ("secret", "1", "2", "3", "4", "5"):
        (tmp_path / name).write_text("done")
    (tmp_path / "empty").mkdir()
    quiet = subprocess.DEVNULL
    victim = subprocess.Popen(["sleep", "600"], stdout=quiet, stderr=quiet)
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    library = ctypes.CDLL(None)
    library.shmat.restype = ctypes.c_void_p
    segment = library.shmget(0, 4, 0o600 | 0o1000)
    memory = library.shmat(segment, None, 0)
    ctypes.memmove(memory, b"done", 4)
    local = socket.socket(socket.AF_UNIX)
    local.bind(f"\0rlsgd-{port}")
    local.listen()
    threading.Thread(target=answer_all, args=(server,), daemon=True).start()
    yield {
        "FOLDER": str(tmp_path),
        "HOME": str(Path.home()),
        "VICTIM": victim.pid,
        "PORT": port,
        "SEGMENT": segment,
        "X86": os.uname().machine == "x86_64",
        "ATTEMPTS": ATTEMPTS,
    }
    library.shmdt(ctypes.c_void_p(memory))
    library.shmctl(segment, 0, None)
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    local.close()
    victim.kill()
    victim.wait()
    for folder in ("/var/tmp", "/dev/shm"):
        Path(f"{folder}/rlsgd-{victim.pid}").unlink(missing_ok=True)
    if (made := Path(f"/rlsgd-{victim.pid}")).is_dir():
        made.rmdir()


def answer_all(server):
    while True:
        try:
            connection = server.accept()[0]
        except OSError:
            return
        connection.sendall(b"done")
        connection.close()


def state_of(surroundings):
    files = sorted(Path(surroundings["FOLDER"]).iterdir())
    return [
        {path.name: (path.stat().st_mode, path.stat().st_mtime) for path in files},
        {path.name: path.read_text() for path in files if path.is_file()},
        os.getpriority(os.PRIO_PROCESS, surroundings["VICTIM"]),
        is_running(surroundings["VICTIM"]),
        Path(f"/var/tmp/rlsgd-{surroundings['VICTIM']}").exists(),
    ]


def with_constants(program, surroundings):
    constants = "".join(f"{name} = {value!r}\n" for name, value in surroundings.items())
    return IMPORTS + constants + program


def limited(kind):
    return kind(cpu_seconds=5, memory_mb=MEMORY_MB, scratch_mb=1, output_kb=64)


def score(program, surroundings, sandbox, seconds=600.0):
    problem = Problem("q", "a", {"columns": {"tests": [{"input": "", "output": "done"}]}})
    reward = StdioTests(sandbox=sandbox, seconds=seconds)
    return reward.score(with_constants(program, surroundings), problem)


def succeeding(sandbox, surroundings):
    output, _ = run_program(sandbox, with_constants(ATTEMPT_ALL, surroundings))
    return set(output.decode().splitlines())


@pytest.fixture(params=WORKING, ids=lambda kind: kind.__name__)
def sandbox(request):
    return limited(request.param)


@pytest.fixture(params=[*WORKING, Unsandboxed], ids=lambda kind: kind.__name__)
def any_kind(request):
    return limited(request.param)


def test_every_attempt_is_refused(sandbox, surroundings):
    before = state_of(surroundings)
    assert succeeding(sandbox, surroundings) == set()
    assert state_of(surroundings) == before


def test_attempts_succeed_where_nothing_refuses_them(surroundings):
    assert succeeding(limited(Unsandboxed), surroundings) >= ATTEMPTS.keys() - NOT_FOR_ALL


def test_namespaces_hold_without_the_filter(surroundings, monkeypatch):
    """Two walls: each is tried alone, so that neither can fall unnoticed behind the other."""
    if Bubblewrap not in WORKING:
        pytest.skip("install bubblewrap: its namespaces are not tried here")
    allow_all = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    monkeypatch.setattr("rlsgd.rewards.sandbox.base.seccomp_filter", lambda: allow_all)
    before = state_of(surroundings)
    done = succeeding(limited(Bubblewrap), surroundings)
    assert "fork" in done and "shared memory" in done, "the filter is off"
    assert done & OF_NAMESPACES == set()
    assert state_of(surroundings) == before


def test_limits_by_value(any_kind):
    program = """
import resource
for name in ("CPU", "AS", "FSIZE", "NOFILE", "CORE"):
    print(*resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
"""
    output, _ = run_program(any_kind, program)
    most = [5, MEMORY_MB * 2**20, 2**20, 64, 0]
    assert [line.split() for line in output.decode().splitlines()] == [[str(n)] * 2 for n in most]


# The parent prints the process that it started, and those that this one started.
PARENT = """
import pathlib, sys, time
from rlsgd.rewards import Bubblewrap, Landlock
session = {kind}().start("script", b"import time; time.sleep(600)", b"")
session.wait_until_ready(600)
started = [session._process.pid]
for process in started:
    for task in pathlib.Path(f"/proc/{{process}}/task").iterdir():
        started += map(int, (task / "children").read_text().split())
print(*started, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", WORKING, ids=lambda kind: kind.__name__)
def test_a_program_ends_with_the_process_that_started_it(kind):
    command = [sys.executable, "-c", PARENT.format(kind=kind.__name__)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        started = list(map(int, parent.stdout.readline().split()))
        assert started and all(map(is_running, started))
        parent.kill()
    end = time.monotonic() + 60
    while (left := list(filter(is_running, started))) and time.monotonic() < end:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left


def test_what_a_program_says_on_standard_error_goes_nowhere(sandbox, surroundings):
    """More than a pipe holds, which nobody reads."""
    program = "sys.stderr.write('x' * 2**20); os.write(2, bytes(2**20)); print('done')"
    assert score(program, surroundings, sandbox) == 1


@pytest.mark.parametrize("attack", SCORED)
def test_attack_scores_0(attack, sandbox, surroundings):
    before = state_of(surroundings)
    assert score(SCORED[attack], surroundings, sandbox) == 0
    assert state_of(surroundings) == before


@pytest.mark.parametrize("attack", ENDLESS)
def test_endless_program_is_stopped_and_scores_0(attack, sandbox, surroundings):
    assert score(ENDLESS[attack], surroundings, sandbox, seconds=0.3) == 0


def test_processor_time_alone_ends_a_program(sandbox):
    sandbox.cpu_seconds = 1
    _, code = run_program(sandbox, "while True: pass", seconds=10**4)
    assert code != 0


def test_another_program_would_answer(surroundings):
    """Where it may be run: `another program` above fails for this reason and no other."""
    assert score(SCORED["another program"], surroundings, limited(Unsandboxed)) == 1


@pytest.mark.parametrize("attack", ["memory bomb", "memory in pieces"])
def test_memory_is_what_ends_the_memory_bombs(attack, sandbox, surroundings):
    sandbox.memory_mb = 2 * MEMORY_MB
    assert score(SCORED[attack], surroundings, sandbox) == 1


def test_output_is_what_ends_huge_output(sandbox, surroundings):
    printing = "sys.stdout.write('done' + ' ' * (2**16 - {less}))"
    assert score(printing.format(less=4), surroundings, sandbox) == 1
    assert score(printing.format(less=3), surroundings, sandbox) == 0
