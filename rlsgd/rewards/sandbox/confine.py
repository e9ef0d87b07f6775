"""Takes rights from its own process, then runs another program text in it.

Started as `python -I -S -c SOURCE filter paths text ...` by `sandbox_landlock.py`: a filter of
system calls in hexadecimal, the paths that stay readable (one on a line), and the text, which finds
the remaining arguments in `sys.argv`. Whatever fails here ends the process with a reason.
"""

from __future__ import annotations

import ctypes
import os
import sys

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every machine
_PATH_BENEATH, _ASK_VERSION, _NEEDED_VERSION = 1, 1, 3
_EVERY_RIGHT = (1 << 15) - 1  # of version 3; rights beyond it are on device files, none readable
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_DEATH_SIGNAL, _SET_SECCOMP, _NO_NEW_PRIVILEGES = 1, 22, 38  # of prctl(2)
_CAPABILITY_VERSION, _FILTER_MODE = 0x20080522, 2


class _Rule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def confine(filter_steps: bytes, readable: list[str]) -> None:
    """Leave the process with files to read below these paths, and the calls the filter lets pass.

    Raises:
        OSError: if the kernel refuses any part of it.
    """
    library = ctypes.CDLL(None, use_errno=True)

    def must(what: str, result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
        return result

    version = library.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < _NEEDED_VERSION:
        raise OSError("this kernel has no Landlock of version 3 or newer (Linux 6.2)")
    rights = ctypes.c_uint64(_EVERY_RIGHT)
    size = ctypes.c_size_t(ctypes.sizeof(rights))
    rules = must("Landlock", library.syscall(_CREATE_RULESET, ctypes.byref(rights), size, 0))
    for path in [*readable, os.devnull]:
        if not os.path.exists(path):
            continue
        kept = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
        kept |= _WRITE_FILE if path == os.devnull else 0
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.byref(_Rule(kept, place))
        must("Landlock", library.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0))
        os.close(place)
    must("prctl", library.prctl(_DEATH_SIGNAL, 9, 0, 0, 0))
    must("prctl", library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    must("Landlock", library.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)
    no_capabilities = (ctypes.c_uint32 * 6)()  # root would keep rights over the whole machine
    own = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    must("capset", library.capset(own, no_capabilities))
    steps = _Filter(len(filter_steps) // 8, filter_steps)
    must("seccomp", library.prctl(_SET_SECCOMP, _FILTER_MODE, ctypes.byref(steps), 0, 0))


if __name__ == "__main__":
    _, given_filter, given_paths, text, *rest = sys.argv
    try:
        confine(bytes.fromhex(given_filter), given_paths.split("\n"))
    except OSError as error:
        sys.exit(str(error))
    sys.argv[1:] = rest
    exec(compile(text, "sandbox_inside.py", "exec"))
