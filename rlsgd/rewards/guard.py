"""Keeps a verifier from running a model's text as Python, by an audit hook (PEP 578).

Verifiers of reasoning_gym call `eval`, and sympy's parser writes Python and evaluates it. What is
left of such text is arithmetic: literals, operators and sympy's own classes. Anything else is
refused in the moment before it would run, as an exception at the verifier's `eval`.
"""

from __future__ import annotations

import dis
import string
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FrameType

_REFUSED_STEPS = (
    *("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER", "LOAD_BUILD", "LOAD_GLOBAL", "MAKE_FUNCTION"),
    *("STORE_", "DELETE_", "IMPORT_", "YIELD", "RETURN_GENERATOR", "SETUP_", "BEFORE_WITH"),
)
_PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "pickle.find")
# Besides sympy's classes; nothing that takes text, or hands back more than a number.
_FUNCTIONS = {"sqrt", "cbrt", "root", "real_root", "abs", "max", "min", "pow", "round"}
_SYMPYS_OWN = compile("from sympy import *", "<string>", "exec")  # its parser begins with this
# Modules that write Python from templates of their own, with nothing of a text in it.
_TEMPLATES = {"sympy.polys.monomials", "collections", "dataclasses"}
_guarded: dict[int, int] = {}  # threads, with the number of blocks that they are in
refusals = 0


class EvaluationRefused(ValueError):
    """The text is a program, not an answer."""


@contextmanager
def no_evaluation() -> Iterator[None]:
    """Within the block this thread evaluates no text but arithmetic, whatever library asks for it.

    Raises:
        EvaluationRefused: where the text is evaluated, a ValueError that a verifier may catch.
    """
    install()
    thread = threading.get_ident()
    _guarded[thread] = _guarded.get(thread, 0) + 1
    try:
        yield
    finally:
        _guarded[thread] -= 1
        if not _guarded[thread]:
            del _guarded[thread]


@cache
def install() -> None:
    """Add the hook to this process, once and for good; outside of such a block it does nothing."""
    _sympy_names()
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _guarded or threading.get_ident() not in _guarded:
        return
    if event == "exec":
        code = arguments[0]
        caller = sys._getframe(1).f_globals.get("__name__")
        if not isinstance(code, CodeType) or caller in _TEMPLATES:
            return
        if is_arithmetic(code) or _is_import():
            return
    elif not event.startswith(_PROCESSES):
        return
    global refusals
    refusals += 1
    raise EvaluationRefused("the answer is a program, which is not run")


def is_arithmetic(code: CodeType) -> bool:
    """Whether code is literals, operators, and calls of sympy's classes, with no attribute."""
    if code == _SYMPYS_OWN:
        return True
    names = _sympy_names()
    return all(name in names for name in code.co_names) and not any(
        step.opname.startswith(_REFUSED_STEPS) for step in dis.get_instructions(code)
    )


@cache
def _sympy_names() -> frozenset[str]:
    """Names that evaluated text may hold; single letters are variables of a verifier's own."""
    import sympy

    kinds = {
        name
        for name, value in vars(sympy).items()
        if isinstance(value, sympy.Basic)
        or (isinstance(value, type) and issubclass(value, sympy.Basic))
    }
    return frozenset(kinds | _FUNCTIONS | set(string.ascii_letters))


def _is_import() -> bool:
    """Whether the code belongs to a module that is being imported, by a library or by Python."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib"):
            return True
        if code is no_evaluation.__wrapped__.__code__:  # pyright: ignore[reportFunctionMemberAccess]
            return False
        frame = frame.f_back
    return False
