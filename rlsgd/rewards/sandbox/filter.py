"""The system calls that a sandboxed program may not make, as a seccomp filter.

One process is the whole of a program: without `fork` nothing outlives it, and limits that the
kernel keeps for each process are limits of the program.
"""

from __future__ import annotations

import errno
import platform
import struct

from rlsgd.rewards.sandbox.session import SandboxError

# Numbers of (x86_64, aarch64); None where the machine has no such call.
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # --- other processes; bubblewrap keeps nested namespaces out from 0.8 on only ---
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # --- the network; vsock sockets, to the host of a virtual machine, know no namespaces ---
    "socket": (41, 198),
    # --- memory that counts neither as the process's own nor as scratch space ---
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # --- such memory of other processes, whose numbers are easily guessed ---
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    # --- what Landlock does not know of files ---
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    # --- keys of the user, and large pieces of kernel that no program of a test needs ---
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_PRLIMIT = (302, 261)
_CLONE = (56, 220)
_CLONE3 = 435
_CLONE_THREAD = 0x10000
# Calls from here on came after this table (Linux 6.13), as x86_64's second numbering does (x32).
_FIRST_UNKNOWN = 463
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def seccomp_filter(machine: str | None = None) -> bytes:
    """The filter as an array of `struct sock_filter` (seccomp(2)).

    A forbidden call fails with EPERM. `clone` may start threads alone, and `prlimit64` name the
    caller alone; `clone3`, whose flags a filter cannot see, fails with ENOSYS, upon which the C
    library takes `clone`.

    Args:
        machine: as `platform.machine()` says it; by default this machine.

    Raises:
        SandboxError: for a machine whose system calls are not listed here.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise SandboxError(
            f"the system calls of {' and '.join(_ARCHITECTURES)} are known, not of {machine!r}"
        )
    column = list(_ARCHITECTURES).index(machine)
    refuse, unknown = ((_RETURN, 0, 0, _ERROR | code) for code in (errno.EPERM, errno.ENOSYS))
    allow = (_RETURN, 0, 0, _ALLOW)
    first_argument = (_LOAD, 0, 0, _FIRST_ARGUMENT)
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        *((_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL)),
        (_LOAD, 0, 0, _NUMBER),
        *((_JUMP_AT_LEAST, 0, 1, _FIRST_UNKNOWN), unknown),
        *((_JUMP_EQUAL, 0, 1, _CLONE3), unknown),
    ]
    for numbers in _FORBIDDEN.values():
        if (number := numbers[column]) is not None:
            steps += [(_JUMP_EQUAL, 0, 1, number), refuse]
    steps += [(_JUMP_EQUAL, 0, 4, _PRLIMIT[column]), first_argument]
    steps += [(_JUMP_EQUAL, 0, 1, 0), allow, refuse]
    steps += [(_JUMP_EQUAL, 0, 4, _CLONE[column]), first_argument]
    steps += [(_JUMP_BITS, 0, 1, _CLONE_THREAD), allow, refuse]
    steps += [allow]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
