"""How every command begins and ends: what its user got wrong is one line, exit status 2."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

DEBUG = "RLSGD_DEBUG"
ISSUES = "the issue tracker of rlsgd"


class UsageError(Exception):
    """What a user wrote cannot be; its text is the one line to print."""


class OneLine:
    """Mixed into a parser: an error is a line with a suggestion, not a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        if getattr(self, "exit_on_error", True) is False:  # of a value: the parser above sums up
            return super().error(message, ex)  # pyright: ignore[reportAttributeAccessIssue]
        raise UsageError(explain(message, flags_of(self))) from ex


class PlainParser(OneLine, argparse.ArgumentParser):
    """argparse's."""


def run_command(
    name: str, argv: Sequence[str], parser: Any, work: Callable[[Any], int | None]
) -> int:
    """Parse, do the work, and return the exit status.

    Args:
        name: of the command.
        argv: what follows it.
        parser: a `PlainParser`, or a `TypedParser` of `core/typed_parser.py`.
        work: gets the arguments; returns an exit status, None for 0.
    """
    given: Any = None
    try:
        given = parser.parse_args(list(argv))
        return work(given) or 0
    except (UsageError, ValueError) as error:
        return refuse(f"rlsgd {name}", str(error))
    except OSError as error:
        return refuse(f"rlsgd {name}", f"{_argument(error, given)}{error.strerror or error}")
    except Exception:
        return fault(f"rlsgd {name}")


def _argument(error: OSError, given: Any) -> str:
    """The argument whose file it is, and the file."""
    file = str(error.filename or "")
    for argument, value in vars(given or argparse.Namespace()).items():
        if file and file in map(str, value if isinstance(value, list) else [value]):
            return f"{argument} {file}: "
    return f"{file}: " if file else ""


def refuse(program: str, message: str) -> int:
    """Print one line about what a user got wrong; with `--debug` also where it was found."""
    if is_debugging():
        traceback.print_exc()
    print(f"{program}: error: {one_line(message)}", file=sys.stderr)
    return 2


def fault(program: str) -> int:
    """Print the traceback of what nobody foresaw, and where to tell of it."""
    traceback.print_exc()
    print(
        f"{program}: this is a fault of rlsgd, or of a class that it was given: please report the "
        f"lines above with the command to {ISSUES}",
        file=sys.stderr,
    )
    return 1


def is_debugging() -> bool:
    """Whether `--debug` or RLSGD_DEBUG=1 asks for tracebacks."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


@contextmanager
def debugging(wanted: bool) -> Iterator[None]:
    """Tracebacks of this command, and of those that it starts, if they are wanted."""
    before = os.environ.get(DEBUG)
    if wanted:
        os.environ[DEBUG] = "1"
    try:
        yield
    finally:
        if wanted:
            os.environ.pop(DEBUG)
            os.environ.update({} if before is None else {DEBUG: before})


def one_line(message: str) -> str:
    """The same words without line breaks."""
    return " ".join(message.split())


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name closest to `name`; empty if none is close."""
    known = list(known)
    last = {one.rpartition(".")[2].lower(): one for one in known}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if not close:
        short = name.rpartition(".")[2].lower()
        close = [last[one] for one in difflib.get_close_matches(short, last, n=1, cutoff=0.6)]
    return f"; did you mean {close[0]}?" if close else ""


def flags_of(parser: Any) -> list[str]:
    """All flags of a parser, and the words of its subcommands."""
    found: list[str] = []
    for action in parser._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            found += list(action.choices or ())
            for inner in (action.choices or {}).values():
                found += flags_of(inner)
    return found


def explain(message: str, flags: list[str]) -> str:
    """argparse's message as: flag, what is wrong, the fix."""
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        wrong = found[1].partition("=")[0]
        return f"{wrong}: there is no such argument{did_you_mean(wrong, flags) or HELP}"
    if found := re.search(r"the following arguments are required: (.+)", message):
        return f"{', '.join(_flag(name, flags) for name in found[1].split(', '))}: is missing{HELP}"
    if found := re.search(r"argument (\S+): invalid choice: '?([^' ]*)'?.*?\((.*)\)", message):
        known = re.findall(r"[\w.-]+", found[3].removeprefix("choose from"))
        advice = did_you_mean(found[2], known) or f"; there are {', '.join(known)}"
        return f"{found[1]} {found[2]}: there is no such choice{advice}"
    if found := re.search(r"argument ([^:\s]+)\S*: (.*)", message, re.DOTALL):
        return f"{found[1]}: {found[2]}"
    if found := re.search(r'(?:Parser key|Key) "([\w.-]+)":\s*(.*)', message, re.DOTALL):
        flag = f"--{found[1]}" if f"--{found[1]}" in flags else found[1]
        if wrong := re.search(r"Expected a <class '(\w+)'>\. Got value: (.*)", found[2]):
            return f"{flag} {wrong[2]}: must be {wrong[1]}"
        return f"{flag}: {found[2] or message}"
    return message


def _flag(name: str, flags: list[str]) -> str:
    """The flag of a setting, which may have its command before it."""
    names = (name, name.partition(".")[2])
    return next((f"--{one}" for one in names if f"--{one}" in flags), name)


HELP = "; --help lists them"
