"""What runs inside a sandbox, started as `python -I -S -c SOURCE role size cpu memory scratch`.

Standard input begins with `size` bytes of payload. Before any of it runs, the limits are set for
good and one line on standard error says so. The roles:

- `script`: the payload is a program; standard input and output are its own.
- `candidate`: the payload is a program whose functions are called. One JSON line on standard input
  is a call, one on standard output its value or the name of its exception.
- `judge`: the payload is JSON with test code. Each line on standard output is `call ...` (the
  answer is read from standard input), or the verdict on a test: `pass`, `fail`, `broken REASON`.

A candidate and its judge are in two sandboxes, so the candidate cannot reach the code that judges
it. What it sends is rebuilt as plain builtin values: nothing in a comparison is of its making.
"""

from __future__ import annotations

import builtins
import os
import sys

TYPE_CHECKING = False  # as type checkers read it; importing typing would double the start-up time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

READY = b"rlsgd: the program starts\n"
_MODULE = type(sys)
_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "iterator": iter,
    "range": lambda bounds: range(*bounds),
    "complex": lambda pair: complex(*pair),
    "bytes": bytes,
}


def encode(value: Any) -> Any:
    """A value as JSON can hold it: lists and scalars as they are, `{"tuple": [...]}` and the like.

    Raises:
        TypeError: for anything but builtin values, their subclasses and iterators over them.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item) for item in value]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": list(value)}
    if hasattr(type(value), "__next__"):
        return {"iterator": [encode(item) for item in value]}
    raise TypeError(f"a value of type {type(value).__name__} cannot leave its process")


def decode(value: Any) -> Any:
    """The plain value that `encode` wrote; raises where it did not write this."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        ((kind, items),) = value.items()
        return _CONTAINERS[kind]([decode(item) for item in items])
    return value


def exception_named(name: object) -> type[Exception]:
    """The builtin exception of this name; RuntimeError for what could end a test well."""
    kind = getattr(builtins, str(name), None)
    # SystemExit would pass by a test's handlers, StopIteration ends a `map` before its assertions
    if isinstance(kind, type) and issubclass(kind, Exception):
        return RuntimeError if issubclass(kind, (StopIteration, StopAsyncIteration)) else kind
    return RuntimeError


def run_script(program: bytes) -> None:
    """Run a program as `python program.py` would, less the modules of `site`."""
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)
    sys.modules["__main__"] = module = _MODULE("__main__")
    exec(compile(program, "program.py", "exec"), module.__dict__)


def serve_candidate(program: bytes) -> None:
    """Answer calls to the functions that a program defines, until there are no more."""
    import json

    requests, replies = _take_channels()
    sys.modules["candidate"] = module = _MODULE("candidate")
    exec(compile(program, "program.py", "exec"), module.__dict__)
    for line in requests:
        name, args, kwargs = decode(json.loads(line))
        try:
            reply = {"value": encode(getattr(module, name)(*args, **kwargs))}
        except Exception as error:
            reply = {"raised": type(error).__name__}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def judge(payload: bytes) -> None:
    """Run each test by itself; one that never calls the candidate proves nothing and fails."""
    import json

    answers, verdicts = _take_channels()

    def say(line: str) -> None:
        verdicts.write(line + "\n")
        verdicts.flush()

    class Broken(BaseException):
        """The test, not the candidate, is at fault."""

    def ask(name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            call = json.dumps(encode([name, args, kwargs]))
        except TypeError as error:
            raise Broken(f"the test passes what cannot be sent: {error}") from None
        calls.append(name)
        say(f"call {call}")
        reply = json.loads(answers.readline())
        if "raised" in reply:
            raise exception_named(reply["raised"])(f"{name} raised {reply['raised']}")
        return decode(reply["value"])

    task = json.loads(payload)
    for test in task["tests"]:
        calls: list[str] = []
        namespace: dict[str, Any] = {"__name__": "tests"}
        try:
            exec(compile(task["setup"], "setup.py", "exec"), namespace)
            for name in task["candidates"]:
                namespace[name] = lambda *args, name=name, **kwargs: ask(name, *args, **kwargs)
            compiled = compile(test, "tests.py", "exec")
        except Exception as error:
            return say(f"broken {type(error).__name__}: {error}")
        try:
            exec(compiled, namespace)
            if task["entry_point"] and "check" in namespace:
                namespace["check"](namespace[task["entry_point"]])
            passed = bool(calls)
        except Broken as error:
            return say(f"broken {error}")
        except BaseException:
            passed = False
        say("pass" if passed else "fail")
        if task["stop_at_failure"] and not passed:
            return None


def _take_channels() -> tuple[Any, Any]:
    """Standard input and output for messages alone; a program's own prints go nowhere."""
    messages = (
        os.fdopen(os.dup(0), encoding="utf-8"),
        os.fdopen(os.dup(1), "w", encoding="utf-8"),
    )
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return messages


def _limit(cpu_seconds: int, memory_bytes: int, scratch_bytes: int) -> None:
    import resource

    for name, most in (
        ("CPU", cpu_seconds),
        ("AS", memory_bytes),
        ("FSIZE", scratch_bytes),
        ("NOFILE", 64),
        ("CORE", 0),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("SIGPENDING", 64),  # timers count among them
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def main() -> None:
    role, *numbers = sys.argv[1:]
    size, *limits = map(int, numbers)
    payload = b""
    while len(payload) < size:
        piece = os.read(0, size - len(payload))
        if not piece:
            sys.exit("the payload is not complete")
        payload += piece
    sys.argv[:] = ["program.py"]
    sys.set_int_max_str_digits(0)
    _limit(*limits)
    os.write(2, READY)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    {"script": run_script, "candidate": serve_candidate, "judge": judge}[role](payload)


if __name__ == "__main__":
    main()
