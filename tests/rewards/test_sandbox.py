"""Which sandbox is taken, what its filter lets pass, and how it says that it does not work."""

import ctypes
import errno
import platform
import struct
import warnings
from pathlib import Path

import pytest

from rlsgd.core.problems import Problem
from rlsgd.rewards import Bubblewrap, Landlock, Scorer, StdioTests, Unsandboxed
from rlsgd.rewards.code import default_sandbox
from rlsgd.rewards.sandbox.container import Container
from rlsgd.rewards.sandbox.filter import seccomp_filter
from rlsgd.rewards.sandbox.session import SandboxError
from tests.rewards.sandboxes import REASONS, WORKING, run_program

ALLOW, KILL, REFUSED = 0x7FFF0000, 0x80000000, 0x00050000
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# From the kernel's syscall_64.tbl (x86) and include/uapi/asm-generic/unistd.h
CALLS = {
    "x86_64": {
        "allowed": {"read": 0, "open": 2, "mmap": 9, "futex": 202, "openat": 257},
        "refused": {"socket": 41, "fork": 57, "vfork": 58, "kill": 62, "chmod": 90, "ptrace": 101},
        "clone": 56,
        "prlimit64": 302,
        "prctl": 157,
        "fcntl": 72,
        "ioctl": 16,
        "socketpair": 53,
    },
    "aarch64": {
        "allowed": {"openat": 56, "read": 63, "futex": 98, "mmap": 222},
        "refused": {"fchmodat": 53, "ptrace": 117, "kill": 129, "socket": 198, "unshare": 97},
        "clone": 220,
        "prlimit64": 261,
        "prctl": 167,
        "fcntl": 25,
        "ioctl": 29,
        "socketpair": 199,
    },
}
# All that is refused whatever its arguments, so that none is lost unnoticed; from the same tables.
REFUSED_NUMBERS = {
    "x86_64": (
        "29-31 41-43 49-50 54 57-59 62 64-66 68-71 73 90-94 101 103 105-106 109 112-114 "
        "116-117 119 122-123 126 129 132 135 141-142 144 149 151 153-155 159 161-173 175-176 "
        "179 188-190 197-200 203 206 220 227 234-235 240-241 246 248-251 253 256 260-261 268 "
        "272 274-276 278-280 288 294 297-298 300 303-306 308 310-314 319-323 325 424-434 438 "
        "440 442-443 447-448 452 457-458"
    ),
    "aarch64": (
        "0 5-7 14-16 26 30 32 39-41 51-55 58 60 75-77 81 88-89 91-92 97 100 104-106 112 "
        "116-119 122 129-131 138 140 142-147 149 151-152 154 157 159 161-162 170-171 180-181 "
        "186-196 198 200-203 208 217-219 221 224-225 228 230 238-242 262 264-268 270-274 "
        "279-282 284 294 424-434 438 440 442-443 447-448 452 457-458"
    ),
}
THREAD, NEW_PROCESS = 0x003D0F00, 17  # the flags of pthread_create, and SIGCHLD alone


def verdict(machine, number, *arguments, architecture=None):
    """What the filter says of a call, by interpreting its classic BPF."""
    steps = list(struct.iter_unpack("=HBBI", seccomp_filter(machine)))
    words = {0: number, 4: architecture or ARCHITECTURE[machine], 16: 0, 24: 0, 32: 0}
    words |= {16 + 8 * i: argument for i, argument in enumerate(arguments)}
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, k = steps[at]
        at += 1
        match code:
            case 0x20:
                loaded = words[k]
            case 0x54:
                loaded &= k
            case 0x06:
                return k
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: loaded == k, 0x35: loaded >= k, 0x45: bool(loaded & k)}[code]
                at += if_true if holds else if_false
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


@pytest.mark.parametrize("machine", CALLS)
def test_filter_by_the_kernels_numbers(machine):
    calls = CALLS[machine]
    assert {verdict(machine, n) for n in calls["allowed"].values()} == {ALLOW}
    assert {verdict(machine, n) for n in calls["refused"].values()} == {REFUSED | errno.EPERM}
    assert verdict(machine, calls["clone"], THREAD) == ALLOW
    assert verdict(machine, calls["clone"], NEW_PROCESS) == REFUSED | errno.EPERM
    assert verdict(machine, calls["prlimit64"], 0) == ALLOW
    assert verdict(machine, calls["prlimit64"], 1) == REFUSED | errno.EPERM
    for unseen in (435, 463, 0x40000000):  # clone3, the first call after the table, fork by x32
        assert verdict(machine, unseen) == REFUSED | errno.ENOSYS
    assert verdict(machine, 0, architecture=0x40000003) == KILL  # 32-bit calls have other numbers


@pytest.mark.parametrize("machine", CALLS)
def test_filter_refuses_these_and_no_others(machine):
    spans = [span.split("-") for span in REFUSED_NUMBERS[machine].split()]
    expected = {n for span in spans for n in range(int(span[0]), int(span[-1]) + 1)}
    names = ("clone", "prlimit64", "prctl", "fcntl", "ioctl", "socketpair")
    special = {*(CALLS[machine][name] for name in names), 435}
    verdicts = {n: verdict(machine, n) for n in range(463) if n not in special}
    assert {n for n, v in verdicts.items() if v == REFUSED | errno.EPERM} == expected
    assert set(verdicts.values()) == {ALLOW, REFUSED | errno.EPERM}


# Commands by their numbers in the kernel's headers: those that pass, and those that must not.
COMMANDS = [
    ("prctl", [(15,), (16,), (0x53564D41,)], [(1,), (4,), (22,), (36,), (38,), (0x59616D61,)]),
    # F_SETFL with O_NONBLOCK passes, with O_ASYNC not; F_SETLK, F_SETOWN, F_SETSIG, F_SETOWN_EX,
    # F_OFD_SETLK, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ do not
    (
        "fcntl",
        [(3, number) for number in (0, 1, 2, 3, 1030)] + [(3, 4, 0x800)],
        [(3, number) for number in (6, 7, 8, 10, 15, 37, 1024, 1026, 1031)] + [(3, 4, 0x2800)],
    ),
    # stream, stream with close-on-exec; datagram, seqpacket, another family
    ("socketpair", [(1, 1), (1, 0x80001)], [(1, 2), (1, 5), (1, 0x80002), (2, 1), (16, 1)]),
]


@pytest.mark.parametrize("machine", CALLS)
@pytest.mark.parametrize(("call", "passing", "refused"), COMMANDS)
def test_commands_of_a_call(machine, call, passing, refused):
    number = CALLS[machine][call]
    assert {verdict(machine, number, *arguments) for arguments in passing} == {ALLOW}
    assert {verdict(machine, number, *given) for given in refused} == {REFUSED | errno.EPERM}


@pytest.mark.parametrize("machine", CALLS)
def test_owners_by_ioctl_are_unknown_to_any_device(machine):
    number = CALLS[machine]["ioctl"]
    assert verdict(machine, number, 0, 0x5401) == ALLOW  # TCGETS: is it a terminal?
    # FIOSETOWN, SIOCSPGRP, FIOASYNC, TIOCSTI, TIOCSCTTY
    for command in (0x8901, 0x8902, 0x5452, 0x5412, 0x540E):
        assert verdict(machine, number, 0, command) == REFUSED | errno.ENOTTY


def test_machine_of_unknown_calls_is_refused():
    with pytest.raises(SandboxError, match="x86_64 and aarch64 are known, not of 'riscv64'"):
        seccomp_filter("riscv64")


def test_landlock_works_where_the_kernel_has_it():
    """So that a broken one is no reason to try bubblewrap alone."""
    create_ruleset, ask_version = 444, 1
    version = ctypes.CDLL(None).syscall(create_ruleset, None, ctypes.c_size_t(0), ask_version)
    assert (Landlock in WORKING) == (version >= 3), REASONS


def test_first_that_works_is_taken(monkeypatch):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert type(default_sandbox(allow_unsandboxed=True)) is WORKING[0]
    assert bool(caught) == (WORKING[0] is not Bubblewrap)


def test_without_bubblewrap_landlock_is_taken_and_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    if Landlock in WORKING:
        with pytest.warns(UserWarning, match="no command `bwrap`.; programs run in Landlock"):
            assert type(default_sandbox(allow_unsandboxed=True)) is Landlock
    else:
        with pytest.raises(ValueError, match="no command `bwrap`"):
            default_sandbox(allow_unsandboxed=False)


def test_nothing_runs_unsandboxed_unless_allowed(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(ValueError, match=r"--data.reward.sandbox: .*apt-get install bubblewrap"):
        StdioTests()
    with pytest.warns(UserWarning, match="programs run WITHOUT a sandbox, with your rights"):
        assert type(StdioTests(allow_unsandboxed=True).sandbox) is Unsandboxed


def test_sandbox_that_does_not_work_is_known_before_training(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = r"could not be started .*no command `bwrap`"
    scorer = Scorer(StdioTests(sandbox=Bubblewrap()))
    with scorer, pytest.raises(ValueError, match=reason):
        scorer.wait_until_ready()


def test_broken_sandbox_is_a_failure_of_the_verifier_not_of_the_program(monkeypatch, tmp_path):
    reward = StdioTests(sandbox=Bubblewrap())
    monkeypatch.setenv("PATH", str(tmp_path))
    tests = [{"input": "", "output": "1"}]
    with pytest.raises(SandboxError, match="bwrap"):
        reward.score("print(1)", Problem("q", "a", {"columns": {"tests": tests}}))


def test_reason_of_a_launch_that_fails_is_said(monkeypatch, tmp_path):
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="No permissions to create new namespace"):
        Bubblewrap().check()


def test_unsandboxed_has_the_limits_and_removes_its_folder():
    sandbox = Unsandboxed(memory_mb=64)
    program = "import os\nprint(os.getcwd())\nopen('x', 'w').write('x')\nbytearray(64 * 2**20)"
    output, code = run_program(sandbox, program)
    folder = output.decode().strip()
    assert code == 1
    assert folder.startswith("/") and "rlsgd-" in folder
    assert not Path(folder).exists()


@pytest.mark.parametrize("flag", ["cpu_seconds", "memory_mb", "scratch_mb", "output_kb"])
def test_limits_are_positive(flag):
    with pytest.raises(ValueError, match=f"--data.reward.sandbox.{flag} must be at least 1; got 0"):
        Bubblewrap(**{flag: 0})


def test_container_without_its_engine_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"--data.reward.sandbox.engine: there is no command"):
        Container("python:3.12-slim", engine="podman")
