"""Takes rights from its own process, then runs another program text in it.

Started as `python -I -S -c SOURCE PLAN TEXT ...` inside a sandbox, where nothing but the standard
library is. `PLAN` is `;`-separated: the filter of system calls in hexadecimal; the process that
must be the parent, or 0 inside bubblewrap; the size of `/tmp` and its most files, to be mounted, or
0,0; then paths that stay readable. Whatever fails here ends the process with a reason.
"""

from __future__ import annotations

import ctypes
import os
import sys

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every machine
_PATH_BENEATH, _ASK_VERSION, _NEEDED_VERSION = 1, 1, 3
# Rights of version 3, and from version 5 on that of ioctl on devices.
_EVERY_RIGHT, _IOCTL_RIGHT = (1 << 15) - 1, 1 << 15
_TCP_RIGHTS, _SCOPES = 3, 3  # bind and connect; abstract sockets and signals
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_DEATH_SIGNAL, _SET_DUMPABLE, _SET_SECCOMP, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 4, 22, 36, 38
_CAPABILITY_VERSION, _FILTER_MODE = 0x20080522, 2
_READ_ONLY, _NO_SUID_NO_DEVICES, _REMOUNT, _BIND, _RECURSIVE = 1, 2 | 4, 32, 4096, 16384
_DETACH = 2
_NEW_ROOT = "/proc"  # a folder that there is, and that nobody keeps code in
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_TERMINATE, _CHILD, _KILL = 15, 17, 9  # numbers of signals
# Threads of a program; where another process counts them, how often it looks.
_MOST_THREADS, _LOOK_SECONDS = 256, 0.05
_SET_SIGNAL = 10  # F_SETSIG of fcntl, which Python does not name


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    )


class _Rule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _must(what: str, result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def end_with(parent: int, signal: int = _KILL) -> None:
    """Send this process the signal when its parent ends; end now if it has ended already."""
    _must("prctl", _library().prctl(_DEATH_SIGNAL, signal, 0, 0, 0))
    if os.getppid() != parent:
        sys.exit("the parent has ended")


def end_with_pipe(reader: int) -> None:
    """End this process when the last writer of a pipe closes it, which nobody ever writes to.

    The kernel does it (F_SETSIG), whatever the process is doing, and whoever its parent is: unlike
    the signal of `end_with`, this one does not ask which thread started the process.
    """
    import fcntl
    import select

    fcntl.fcntl(reader, _SET_SIGNAL, _KILL)
    fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
    hang_up = select.poll()
    hang_up.register(reader, 0)
    if hang_up.poll(0):
        sys.exit("the pipe is closed")


def landlock(readable: list[str], writable: list[str]) -> None:
    """Leave the process with files below these paths alone, to read or to read and write.

    Neither TCP (from version 4 on) nor signals and abstract sockets out of the process (from 6 on).

    Raises:
        OSError: if the kernel refuses any part of it.
    """
    library = _library()
    version = library.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < _NEEDED_VERSION:
        raise OSError("this kernel has no Landlock of version 3 or newer (Linux 6.2)")
    rights = _Ruleset(_EVERY_RIGHT | (_IOCTL_RIGHT if version >= 5 else 0), _TCP_RIGHTS, _SCOPES)
    size = ctypes.c_size_t(8 if version < 4 else 16 if version < 6 else 24)
    rules = _must("Landlock", library.syscall(_CREATE_RULESET, ctypes.byref(rights), size, 0))
    for path in [*readable, *writable, os.devnull]:
        if not os.path.exists(path):
            continue
        kept = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
        kept |= _WRITE_FILE if path == os.devnull else 0
        kept = _EVERY_RIGHT & ~1 if path in writable else kept  # all but to execute
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.byref(_Rule(kept, place))
        _must("Landlock", library.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0))
        os.close(place)
    _must("prctl", library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _must("Landlock", library.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def mount_scratch(place: str, size: int, files: int) -> None:
    """An empty folder of so many bytes and files; the kernel's default is half of its memory."""
    options = f"size={size},nr_inodes={files},mode=1777".encode()
    flags = ctypes.c_ulong(_NO_SUID_NO_DEVICES)
    _must(place, _library().mount(b"tmpfs", place.encode(), b"tmpfs", flags, options))
    os.chdir(place)


def new_root(
    places: list[str], hidden: str, devices: list[str], scratch: tuple[str, int, int]
) -> None:
    """Leave the process with these places alone, in a root folder that nothing can be written to.

    Args:
        places: files, folders and links, none of them in another; they stay as they are mounted.
        hidden: a folder of theirs that becomes empty.
        devices: files that stay devices.
        scratch: place, bytes and files of the folder that can be written to.

    Raises:
        OSError: if the kernel refuses any part of it.
    """

    def mount(source: str, target: str, flags: int, kind: bytes | None = None) -> None:
        given = (source.encode(), target.encode(), kind, ctypes.c_ulong(flags), None)
        _must(f"mount {target}", _library().mount(*given))

    os.umask(0o022)
    mount("tmpfs", _NEW_ROOT, _NO_SUID_NO_DEVICES, b"tmpfs")
    os.chmod(_NEW_ROOT, 0o755)
    for place in (*places, *devices):
        target = _NEW_ROOT + place
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(place):
            os.symlink(os.readlink(place), target)
            continue
        os.makedirs(target) if os.path.isdir(place) else open(target, "x").close()
        mount(place, target, _BIND | _RECURSIVE)
    if os.path.isdir(_NEW_ROOT + hidden):
        mount("tmpfs", _NEW_ROOT + hidden, _NO_SUID_NO_DEVICES | _READ_ONLY, b"tmpfs")
    old = "/old-root"
    os.makedirs(_NEW_ROOT + old)
    os.makedirs(_NEW_ROOT + scratch[0])
    pivot = _PIVOT_ROOT[os.uname().machine]
    moved = (ctypes.c_char_p(_NEW_ROOT.encode()), ctypes.c_char_p((_NEW_ROOT + old).encode()))
    _must("pivot_root", _library().syscall(pivot, *moved))
    os.chdir("/")
    _must("umount", _library().umount2(old.encode(), _DETACH))
    os.rmdir(old)
    mount("tmpfs", "/", _REMOUNT | _BIND | _READ_ONLY | _NO_SUID_NO_DEVICES)
    mount_scratch(*scratch)


def limit_threads() -> None:
    """In a user namespace of its own a process is not counted with its user's others."""
    import resource

    resource.setrlimit(resource.RLIMIT_NPROC, (_MOST_THREADS, _MOST_THREADS))


def drop_capabilities() -> None:
    """Root would keep rights over the whole machine."""
    nothing = (ctypes.c_uint32 * 6)()
    own = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _must("capset", _library().capset(own, nothing))


def filter_calls(steps: bytes) -> None:
    """Let no other system calls pass from here on; no memory of the process is ever dumped."""
    library = _library()
    _must("prctl", library.prctl(_SET_DUMPABLE, 0, 0, 0, 0))
    _must("prctl", library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    given = _Filter(len(steps) // 8, steps)
    _must("seccomp", library.prctl(_SET_SECCOMP, _FILTER_MODE, ctypes.byref(given), 0, 0))


def supervise() -> None:
    """Go on in a child. This process waits for it, ends all that it left behind, and ends.

    What the child starts comes to this process when its parent ends, whatever session it is in. The
    child is ended also where it has too many threads, which no limit of a process counts.
    """
    import _signal  # pyright: ignore[reportMissingImports]  # `signal` would take 3 ms more

    awaited = {_TERMINATE, _CHILD}
    _signal.pthread_sigmask(_signal.SIG_BLOCK, awaited)
    own = os.getpid()
    _must("prctl", _library().prctl(_SUBREAPER, 1, 0, 0, 0))
    child = os.fork()
    if child == 0:
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, awaited)
        return end_with(own)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for channel in (0, 1, 2):
        os.dup2(nowhere, channel)
    code = None
    while code is None:
        found = _signal.sigtimedwait(awaited, _LOOK_SECONDS)
        if found is None and _threads(child) <= _MOST_THREADS:
            continue
        if found is None or found.si_signo != _CHILD:
            break
        code = _reap(child)
    while numbers := _children(own):  # whose own children are ours next
        for number in numbers:
            os.kill(number, _KILL)
        os.waitpid(-1, 0)
    os._exit(1 if code is None else code)


def _reap(child: int) -> int | None:
    """Collect what has ended; the exit code of the child if it is among them."""
    code = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if ended == 0:
            return code
        if ended == child:
            code = os.waitstatus_to_exitcode(status) & 255


def _threads(process: int) -> int:
    with open(f"/proc/{process}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[17])


def _children(process: int) -> list[int]:
    with open(f"/proc/{process}/task/{process}/children") as file:
        return list(map(int, file.read().split()))


def main() -> None:
    _, plan, text, *rest = sys.argv
    steps, parent, size, files, *readable = plan.split(";")
    os.closerange(3, 1024)  # whatever the command was given, or left open
    try:
        if int(parent):
            end_with(int(parent), _TERMINATE)
            supervise()
            landlock(readable, [])
        if int(size):
            mount_scratch("/tmp", int(size), int(files))
            limit_threads()
        drop_capabilities()
        filter_calls(bytes.fromhex(steps))
    except OSError as error:
        sys.exit(str(error))
    sys.argv[1:] = rest
    exec(compile(text, "inside.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})


if __name__ == "__main__":
    main()
