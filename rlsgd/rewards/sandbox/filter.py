"""The system calls that a sandboxed program may not make, as a seccomp filter.

One process is the whole of a program: without `fork` nothing outlives it, and limits that the
kernel keeps for each process are limits of the program.
"""

from __future__ import annotations

import errno
import platform
import struct

from rlsgd.rewards.sandbox import calls
from rlsgd.rewards.sandbox.session import SandboxError

_CLONE_THREAD = 0x10000
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
# Offsets in struct seccomp_data; the low halves of the arguments, all that these calls look at.
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_UNIX, _STREAM, _KIND_OF_SOCKET = 1, 1, 0xF
_Step = tuple[int, int, int, int]
_PASS: _Step = (_RETURN, 0, 0, _ALLOW)
_REFUSE: _Step = (_RETURN, 0, 0, _ERROR | errno.EPERM)
_UNKNOWN: _Step = (_RETURN, 0, 0, _ERROR | errno.ENOSYS)
_NO_SUCH_DEVICE: _Step = (_RETURN, 0, 0, _ERROR | errno.ENOTTY)


def seccomp_filter(machine: str | None = None, *, threads: bool = True) -> bytes:
    """The filter as an array of `struct sock_filter` (seccomp(2)).

    A forbidden call fails with EPERM. `clone` may start threads alone, and `prlimit64` name the
    caller alone; `clone3`, whose flags a filter cannot see, fails with ENOSYS, upon which the C
    library takes `clone`. Of `prctl`, `fcntl` and `ioctl` the commands pass that Python needs:
    none that sends signals, names an owner of a descriptor, takes a lock or a lease, or undoes the
    signal at the parent's death. `socketpair` makes connected streams alone (asyncio needs one).

    Args:
        machine: as `platform.machine()` says it; by default this machine.
        threads: whether the process may start any.

    Raises:
        SandboxError: for a machine whose system calls are not listed here.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise SandboxError(
            f"the system calls of {' and '.join(_ARCHITECTURES)} are known, not of {machine!r}"
        )
    column = list(_ARCHITECTURES).index(machine)
    steps: list[_Step] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        *((_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL)),
        (_LOAD, 0, 0, _NUMBER),
        *((_JUMP_AT_LEAST, 0, 1, calls.FIRST_UNKNOWN), _UNKNOWN),
        *((_JUMP_EQUAL, 0, 1, calls.CLONE3), _UNKNOWN),
    ]
    for numbers in calls.FORBIDDEN.values():
        if (number := numbers[column]) is not None:
            steps += [(_JUMP_EQUAL, 0, 1, number), _REFUSE]
    to_flags: list[_Step] = [
        *((_JUMP_EQUAL, 0, 3, calls.F_SETFL), (_LOAD, 0, 0, _THIRD)),
        *((_JUMP_BITS, 1, 0, calls.O_ASYNC), _PASS),
        _REFUSE,
    ]
    streams: list[_Step] = [
        *((_LOAD, 0, 0, _FIRST), (_JUMP_EQUAL, 0, 3, _UNIX)),
        *((_LOAD, 0, 0, _SECOND), (_AND, 0, 0, _KIND_OF_SOCKET), (_JUMP_EQUAL, 1, 0, _STREAM)),
        *(_REFUSE, _PASS),
    ]
    own: list[_Step] = [(_LOAD, 0, 0, _FIRST), (_JUMP_EQUAL, 0, 1, 0), _PASS, _REFUSE]
    thread_alone: list[_Step] = [
        *((_LOAD, 0, 0, _FIRST), (_JUMP_BITS, 0, 1, _CLONE_THREAD)),
        *(_PASS, _REFUSE),
    ]
    for numbers, rules in (
        (calls.PRLIMIT, own),
        (calls.CLONE, thread_alone if threads else [_REFUSE]),
        (calls.SOCKETPAIR, streams),
        (calls.PRCTL, [*_only(calls.PRCTL_COMMANDS, _FIRST), _REFUSE]),
        (calls.IOCTL, [*_only(calls.IOCTL_COMMANDS, _SECOND), _NO_SUCH_DEVICE]),
        (calls.FCNTL, [*_only(calls.FCNTL_COMMANDS, _SECOND), *to_flags]),
    ):
        steps += [(_JUMP_EQUAL, 0, len(rules), numbers[column]), *rules]
    steps += [_PASS]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _only(commands: tuple[int, ...], argument: int) -> list[_Step]:
    """Let these commands pass; any other goes on to the next step."""
    tests: list[_Step] = [(_LOAD, 0, 0, argument)]
    for command in commands:
        tests += [(_JUMP_EQUAL, 0, 1, command), _PASS]
    return tests
