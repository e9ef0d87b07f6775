"""A private copy of Python's standard library: all the files that a sandboxed program can read.

A folder of the installation would show more, whatever its layout: `base_prefix` may hold
site-packages (pyenv, conda, a system image), and with them the tests and solutions of a data set.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from rlsgd.rewards.sandbox.session import SandboxError

# Not of use to a program of a test: installed packages, tests, interfaces, static libraries.
_LEFT_OUT = shutil.ignore_patterns(
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo"),
    *("ensurepip", "config-*", "*.a", "*.opt-?.pyc", "_tkinter*"),
)
_LAYOUT = "1"  # of the copy; a new one is made where this has changed
# Prints which shared libraries Python and its own extensions need, and the loader.
_ASK = """
import importlib, os, sys
for name in sorted(os.listdir(sys.argv[1])):
    if name.endswith(".so") and not name.startswith(("_test", "_tkinter", "_xx", "xx")):
        try: importlib.import_module(name.split(".")[0])
        except Exception: pass
paths = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
print(*(p for p in sorted(paths) if ".so" in os.path.basename(p) and os.path.isfile(p)), sep="\\n")
"""


@cache
def private_python() -> Path:
    """The copy's folder, made where it is not there yet: `bin/python`, its libraries and loader.

    It is readable for everybody, also below a root user's folders, and holds nothing secret.

    Raises:
        SandboxError: if Python's files cannot be found, or there is no place for a copy.
    """
    executable = Path(os.path.realpath(sys.executable))
    library = Path(os.path.realpath(os.__file__)).parent
    if not (library / "os.py").is_file():
        raise SandboxError(f"Python's standard library {library} is no folder of files")
    signs = [_LAYOUT, sys.version, *map(_sign, (executable, library, Path(_loader(executable))))]
    name = f"python-{sys.version_info[0]}.{sys.version_info[1]}-{_digest(signs)}"
    reasons = []
    for place in _places():
        folder = place / name
        try:
            if not _is_ours(folder):
                place.mkdir(mode=0o755, parents=True, exist_ok=True)
                _copy(executable, library, folder)
        except OSError as error:
            reasons.append(str(error))
            continue
        if _is_ours(folder) and _everybody_reaches(folder):
            return folder
        reasons.append(f"not everybody may read {folder}")
    raise SandboxError(f"no place for a copy of Python's library: {', '.join(reasons)}")


def loader_name(copy: Path) -> str:
    """The path of the dynamic loader that the copy's executable names."""
    return (copy / "loader").read_text()


def library_path() -> dict[str, str]:
    """The variable by which some installations find Python's own shared library."""
    name = "LD_LIBRARY_PATH"
    return {name: os.environ[name]} if name in os.environ else {}


def _places() -> list[Path]:
    own = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "rlsgd")
    shared = Path(tempfile.gettempdir(), f"rlsgd-{os.geteuid()}")
    return [Path("/var/cache/rlsgd"), shared] if os.geteuid() == 0 else [own, shared]


def _sign(path: Path) -> str:
    return f"{path} {path.stat().st_mtime_ns if path.exists() else None}"


def _digest(signs: list[str]) -> str:
    return hashlib.sha256(json.dumps(signs).encode()).hexdigest()[:16]


def _is_ours(folder: Path) -> bool:
    """Whether the folder is whole, and nobody else could have written to it."""
    try:
        for path in (folder.parent, folder):
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                return False
            if found.st_mode & 0o022:
                return False
        return (folder / "loader").is_file()
    except OSError:
        return False


def _everybody_reaches(folder: Path) -> bool:
    """A trainer that is root gives programs another user, which has to reach the files."""
    return os.geteuid() != 0 or all(path.stat().st_mode & 0o001 for path in folder.parents)


def _copy(executable: Path, library: Path, folder: Path) -> None:
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
    try:
        target = partial / sys.platlibdir / library.name
        shutil.copytree(library, target, ignore=_LEFT_OUT, ignore_dangling_symlinks=True)
        extensions = Path(next((p for p in sys.path if p.endswith("lib-dynload")), "/nowhere"))
        if extensions.is_dir() and not (target / "lib-dynload").exists():
            shutil.copytree(extensions, target / "lib-dynload", ignore=_LEFT_OUT)
        (partial / "bin").mkdir()
        shutil.copy2(executable, partial / "bin" / "python")
        libraries = partial / "libraries"
        libraries.mkdir()
        for path in _shared_libraries(executable, extensions):
            shutil.copy2(path, libraries / path.name)
            # The loader asks for the short name, a link beside the file.
            for link in path.parent.glob(f"{path.name.split('.so')[0]}.so*"):
                if link.is_symlink() and link.resolve() == path:
                    (libraries / link.name).symlink_to(path.name)
        loader = _loader(executable)
        shutil.copy2(os.path.realpath(loader), libraries / Path(loader).name)
        (partial / "loader").write_text(loader)
        for path in (partial, *partial.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        (libraries / Path(loader).name).chmod(0o755)
        if not folder.exists():
            partial.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was quicker
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _shared_libraries(executable: Path, extensions: Path) -> list[Path]:
    command = [str(executable), "-I", "-S", "-c", _ASK, str(extensions)]
    asked = subprocess.run(command, capture_output=True, text=True, env=library_path(), timeout=120)
    if asked.returncode:
        raise SandboxError(f"Python's libraries are not known: {asked.stderr.strip()[-200:]}")
    paths = [Path(line) for line in asked.stdout.splitlines()]
    return [path for path in paths if not path.is_relative_to(extensions)]


def _loader(executable: Path) -> str:
    """The interpreter that an ELF file names (PT_INTERP)."""
    data = executable.read_bytes()[: 2**20]
    if data[:5] != b"\x7fELF\x02":
        raise SandboxError(f"{executable} is no 64-bit ELF file")
    start, size = int.from_bytes(data[32:40], "little"), int.from_bytes(data[54:56], "little")
    for number in range(int.from_bytes(data[56:58], "little")):
        header = data[start + number * size :][:size]
        if int.from_bytes(header[:4], "little") == 3:
            at = int.from_bytes(header[8:16], "little")
            length = int.from_bytes(header[32:40], "little")
            return data[at : at + length].rstrip(b"\0").decode()
    raise SandboxError(f"{executable} names no dynamic loader")
