"""Attempts on the machine by a program or a text, each harmless where it succeeds.

An attempt succeeds if it ends without an exception. Names in capitals stand for a process, a folder
and sockets of the test that makes the attempts; a setting is written the value that it has.
"""

IMPORTS = """
import ctypes, fcntl, mmap, multiprocessing, os, pty, resource, signal, socket, struct, subprocess
import sys, tempfile, time
library = ctypes.CDLL(None, use_errno=True)
def must(condition):
    if not condition: raise OSError
def call(x86, arm, *arguments):
    result = library.syscall(x86 if X86 else arm, *arguments)
    must(result >= 0)
    return result
def pipe_fcntl(command, argument):
    reader, writer = os.pipe()
    fcntl.fcntl(reader, command, argument)
def pipe_ioctl(command, argument):
    pair = socket.socketpair()
    fcntl.ioctl(pair[0], command, struct.pack("i", argument))
def own_file(): return os.open(os.__file__, os.O_RDONLY)
def write_own_value(path):
    value = open(path).read()
    open(path, "w").write(value)
def many(prefix, make):
    for number in range(5000): make(f"{prefix}-{number}")
"""
PROGRAMS = {
    # --- what the kernel tells in /proc and /sys, and takes there ---
    "list processes": "must(str(VICTIM) in os.listdir('/proc'))",
    "command of a process": "must('sleep' in open(f'/proc/{VICTIM}/cmdline').read())",
    "descriptors of a process": "os.listdir(f'/proc/{VICTIM}/fd')",
    "memory of a process": "open(f'/proc/{VICTIM}/maps').read()",
    "mounts": "must(open('/proc/self/mountinfo').read())",
    "own memory by a file": "open('/proc/self/mem', 'r+b')",
    "a kernel setting": "must(open('/proc/sys/kernel/core_pattern').read())",
    "the kernel's command line": "must(open('/proc/cmdline').read())",
    "sockets of the machine": "must(open('/proc/net/unix').read())",
    "devices": "must(os.listdir('/sys/class'))",
    "score of the memory killer": "write_own_value('/proc/self/oom_score_adj')",
    "write a kernel setting": "write_own_value('/proc/sys/kernel/core_pattern')",
    "write a kernel setting of the network": "write_own_value('/proc/sys/net/core/somaxconn')",
    "write a kernel setting of memory": "write_own_value('/proc/sys/vm/swappiness')",
    # --- signals by way of a descriptor's owner ---
    "owner": "pipe_fcntl(8, VICTIM)",
    "owner, extended": "pipe_fcntl(15, struct.pack('ii', 1, VICTIM))",
    "signal of a descriptor": "pipe_fcntl(10, signal.SIGWINCH)",
    "signals at every byte": "pipe_fcntl(fcntl.F_SETFL, os.O_ASYNC)",
    "owner by ioctl": "pipe_ioctl(0x8901, VICTIM)",
    "owner by the older ioctl": "pipe_ioctl(0x8902, VICTIM)",
    "signals at every byte by ioctl": "pipe_ioctl(0x5452, 1)",
    "signal to a thread": "call(234, 131, VICTIM, VICTIM, 0)",
    # --- staying alive, and rights ---
    "outlive the parent": "must(library.prctl(1, 0, 0, 0, 0) == 0)",
    "take over orphans": "must(library.prctl(36, 1, 0, 0, 0) == 0)",
    "be dumped": "must(library.prctl(4, 1, 0, 0, 0) == 0)",
    "keep capabilities": "must(library.prctl(8, 1, 0, 0, 0) == 0)",
    "another session": (
        "number = os.fork()\nif number == 0: os.setsid(); os._exit(0)\nos.waitpid(number, 0)"
    ),
    "user": "os.setuid(os.getuid())",
    "group": "os.setresgid(-1, -1, -1)",
    "personality": "must(library.personality(0xFFFFFFFF) >= 0)",
    "capabilities set": (
        "header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
        "must(library.capget(header, rights) == 0 and library.capset(header, rights) == 0)"
    ),
    "cores": "must(resource.getrlimit(resource.RLIMIT_CORE)[1] != 0)",
    # --- leases, locks and watches ---
    "lease": "fcntl.fcntl(os.open(FOLDER + '/secret', os.O_RDONLY), 1024, fcntl.F_RDLCK)",
    "lock": "fcntl.lockf(own_file(), fcntl.LOCK_SH | fcntl.LOCK_NB)",
    "lock of a whole file": "fcntl.flock(own_file(), fcntl.LOCK_SH | fcntl.LOCK_NB)",
    "lock of a description": "fcntl.fcntl(own_file(), 37, struct.pack('hhqqi4x', 0, 0, 0, 0, 0))",
    "watch a folder": "must(library.inotify_init1(0) >= 0)",
    "notices of a folder": (
        "folder = os.open(os.path.dirname(os.__file__), os.O_RDONLY)\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\nfcntl.fcntl(folder, 1026, 1)"
    ),
    "handle of a file": (
        "handle = ctypes.create_string_buffer(struct.pack('Ii', 128, 0), 200)\n"
        "mount = ctypes.c_int()\n"
        "call(303, 264, -100, os.__file__.encode(), handle, ctypes.byref(mount), 0)"
    ),
    # --- sockets ---
    "pair of datagrams": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "pair of packets": "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
    "datagram to an abstract socket": (
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '\\0' + NAME)"
    ),
    "datagram to a socket's path": (
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', FOLDER + '/socket')"
    ),
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "IPv6": "socket.socket(socket.AF_INET6)",
    "server": "socket.create_server(('127.0.0.1', 0))",
    "server of abstract sockets": "socket.socket(socket.AF_UNIX).bind('\\0' + NAME + '-mine')",
    # --- kernel objects that are nobody's memory ---
    "asynchronous files": "context = ctypes.c_ulong()\ncall(206, 0, 8, ctypes.byref(context))",
    "faults in user space": "call(323, 282, 1)",
    "rings": "call(425, 425, 2, ctypes.create_string_buffer(120))",
    "keys": "must(call(250, 219, 0, -1, 1))",
    "large pipe": "pipe_fcntl(1031, 2**20)",
    "splice": (
        "one, two = os.pipe(), os.pipe()\nos.write(one[1], b'x')\nos.splice(one[0], two[1], 1)"
    ),
    "timers without end": (
        "for _ in range(500):\n"
        "    must(library.timer_create(1, None, ctypes.byref(ctypes.c_void_p())) == 0)"
    ),
    "robust futexes of a process": (
        "head, size = ctypes.c_void_p(), ctypes.c_size_t()\n"
        "call(274, 100, VICTIM, ctypes.byref(head), ctypes.byref(size))"
    ),
    "comparison of processes": "call(312, 272, VICTIM, VICTIM, 1, 0, 0)",
    "scheduler of a process": (
        "os.sched_setscheduler(VICTIM, os.sched_getscheduler(VICTIM), os.sched_param(0))"
    ),
    "I/O priority of a process": "call(251, 30, 1, VICTIM, 0)",
    "clock": "must(library.adjtimex(ctypes.create_string_buffer(256)) >= 0)",
    "semaphore": "multiprocessing.Lock()",
    "terminal": "os.close(pty.openpty()[0])",
    # --- files ---
    "files without end": "many('file', lambda name: open(name, 'w').close())",
    "folders without end": "many('folder', os.mkdir)",
    "links without end": "many('link', lambda name: os.symlink('x', name))",
    "hole of a terabyte": "open('hole', 'w').truncate(2**33)",
    "users": "must(open('/etc/passwd').read())",
    "another program's file": "must(open('/bin/sh', 'rb').read(4))",
    "tests and solutions": "must(open(SOLUTIONS).read())",
    "installed packages": "must(os.listdir(SITE))",
    "the project's code": "must(open(CODE).read())",
    # --- the rest of a machine's settings, written the value that they have ---
    "root folder": "os.chroot('/')",
    "machine's name": "socket.sethostname(socket.gethostname())",
    "mount namespace": "must(library.unshare(0x20000) == 0)",
    "groups": "os.setgroups(os.getgroups())",
}
# These need root, or a kernel option that not every machine has.
NOT_FOR_ALL = {
    *("write a kernel setting", "write a kernel setting of the network", "mount namespace"),
    *("write a kernel setting of memory", "root folder", "machine's name", "groups"),
    *("faults in user space", "rings", "comparison of processes", "cores", "IPv6", "keys"),
}
ATTEMPT_ALL = """
for attempt_name, attempt in PROGRAMS.items():
    try: exec(attempt)
    except BaseException: continue
    print(attempt_name, flush=True)
"""


def program_of(constants):
    """A program that makes every attempt and prints the names of those that succeeded."""
    lines = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    return lines + f"PROGRAMS = {PROGRAMS!r}\n" + IMPORTS + ATTEMPT_ALL


# Expressions that a verifier evaluates. One that gets what it is after has the value 'done'.
TEXTS = {
    "environment": "__import__('os').environ['RLSGD_SECRET']",
    "read": "open(FOLDER + '/secret').read()",
    "write": "(open(FOLDER + '/new', 'w').write('x'), 'done')[1]",
    "delete": "(__import__('os').unlink(FOLDER + '/1'), 'done')[1]",
    "shell": "'done' if __import__('os').system('true') == 0 else 1",
    "process": "__import__('subprocess').check_output(['echo', 'done'], text=True)[:4]",
    "fork": "(lambda os: (os.fork() or os._exit(0)) and 'done')(__import__('os'))",
    "another program": "__import__('os').posix_spawn('/bin/true', ['true'], {}) and 'done'",
    "signal": "(__import__('os').kill(VICTIM, 0), 'done')[1]",
    "signal to the parent": "(__import__('os').kill(__import__('os').getppid(), 0), 'done')[1]",
    "owner of a pipe": (
        "(__import__('fcntl').fcntl(__import__('os').pipe()[0], 8, VICTIM), 'done')[1]"
    ),
    "outlive the worker": "'done' if __import__('ctypes').CDLL(None).prctl(1, 0) == 0 else 1",
    "processes": "'done' if str(VICTIM) in __import__('os').listdir('/proc') else 1",
    "environment of the parent": (
        "(open('/proc/%d/environ' % __import__('os').getppid(), 'rb').read(), 'done')[1]"
    ),
    "connect": (
        "(lambda s: s.create_connection(('127.0.0.1', PORT), 5).recv(4).decode())"
        "(__import__('socket'))"
    ),
    "abstract socket": (
        "(lambda s: (s.socketpair(s.AF_UNIX, s.SOCK_DGRAM)[0].sendto(b'x', chr(0) + NAME), 'done')"
        "[1])(__import__('socket'))"
    ),
    "home": "'done' if sorted(__import__('os').listdir(HOME)) == ENTRIES else 1",
    "users": "(open('/etc/passwd').read(), 'done')[1]",
    "tests and solutions": "(open(SOLUTIONS).read(), 'done')[1]",
    "much memory": "(bytearray(1200 * 2**20), 'done')[1]",
    "files without end": (
        "[[open(d + '/%d' % i, 'w').close() for i in range(5000)] for d in "
        "[__import__('tempfile').mkdtemp(dir=SCRATCH)]] and 'done'"
    ),
    "large file": (
        "(open(__import__('tempfile').mkdtemp(dir=SCRATCH) + '/x', 'wb').write(bytes(20*2**20)), "
        "'done')[1]"
    ),
    "thread": "__import__('_thread').start_new_thread(int, ()) and 'done'",
    "user": "(__import__('os').setuid(__import__('os').getuid()), 'done')[1]",
    "locks": ("(__import__('fcntl').flock(open(__import__('os').__file__), 5), 'done')[1]"),
    "shared memory": (
        "(lambda l: 'done' if l.shmctl(l.shmget(0, 4096, 0o1600), 0, None) == 0 else 1)"
        "(__import__('ctypes').CDLL(None))"
    ),
    "a kernel setting": "(open('/proc/sys/kernel/core_pattern').read(), 'done')[1]",
}
