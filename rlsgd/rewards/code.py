"""Rewards of generated programs, by the tests that come with a problem."""

from __future__ import annotations

import io
import re
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, get_args

from rlsgd.core.problems import Problem
from rlsgd.rewards.base import Reward
from rlsgd.rewards.sandbox.base import Bubblewrap, Sandbox, Unsandboxed
from rlsgd.rewards.sandbox.landlock import Landlock
from rlsgd.rewards.sandbox.session import SandboxError

Scoring = Literal["all", "fraction"]

_OPENING = re.compile(r"```[ \t]*(?P<language>\w*)")


class PythonTests(Reward):
    """Runs a generated program in a sandbox; what it did is judged outside of its process.

    The program is the last block fenced by ``` of the completion (one marked `python` or `py`
    before any other), or all of it.
    A program that crashes, hangs, or exceeds a limit fails its test; only a broken problem or
    sandbox is a failure of the verifier.

    Args:
        scoring: `all` scores 1 if every test passes, else 0; `fraction` scores the share that does.
        seconds: wall clock for all tests of a program, less the sandboxes' start-up. It must be
            below --data.reward_timeout_seconds with the start-up (`benchmarks/bench_sandbox.py`).
        sandbox: place where programs run; by default the first that works here of `Bubblewrap` and
            `Landlock`.
        allow_unsandboxed: run programs with your own rights where neither works.
    """

    isolated = True
    walled = False  # it starts sandboxes, and only searches the text
    fork_each = False

    def __init__(
        self,
        scoring: Scoring = "all",
        seconds: float = 8.0,
        sandbox: Sandbox | None = None,
        allow_unsandboxed: bool = False,
    ) -> None:
        if scoring not in get_args(Scoring):
            raise ValueError(
                f"--data.reward.scoring must be one of {', '.join(get_args(Scoring))}; "
                f"got {scoring!r}"
            )
        if not 0 < seconds < float("inf"):
            raise ValueError(f"--data.reward.seconds must be positive and finite; got {seconds}")
        self.scoring: Scoring = scoring
        self.seconds = seconds
        self.sandbox = sandbox or default_sandbox(allow_unsandboxed=allow_unsandboxed)
        for lack in self.sandbox.shortcomings:
            warnings.warn(lack, stacklevel=2)

    def prepare(self) -> None:
        """Raises `SandboxError` if the sandbox does not work in this process."""
        self.sandbox.check()

    def score(self, completion: str, problem: Problem) -> float:
        passed, tests = self.count_passed(completion, problem)
        return float(passed == tests) if self.scoring == "all" else passed / tests

    def answer_of(self, completion: str) -> str | None:
        return extract_code(completion).strip() or None

    @abstractmethod
    def count_passed(self, completion: str, problem: Problem) -> tuple[int, int]:
        """How many tests the program passes, and of how many (at least 1).

        With `scoring` `all` a subclass may stop at the first that fails.

        Raises:
            ValueError: if the problem's tests cannot be read.
            SandboxError: if the sandbox could not be set up.
        """


def default_sandbox(*, allow_unsandboxed: bool) -> Sandbox:
    """The first that works here of `Bubblewrap`, `Landlock` and, if allowed, `Unsandboxed`.

    Anything but the first comes with a warning that says why.

    Raises:
        ValueError: if none works.
    """
    reasons = []
    for kind in (Bubblewrap, Landlock):
        sandbox = kind()
        try:
            sandbox.check()
        except SandboxError as error:
            reasons.append(f"{kind.__name__} does not work here ({error})")
            continue
        if reasons:
            warnings.warn(
                f"{reasons[0]}; programs run in {kind.__name__}, which hides neither whether a "
                "path exists nor the machine's name (docs/sandbox.md)",
                stacklevel=3,
            )
        return sandbox
    why = ", ".join(reasons)
    if not allow_unsandboxed:
        raise ValueError(
            f"--data.reward.sandbox: generated programs need a sandbox: {why}. Install bubblewrap "
            "(`sudo apt-get install bubblewrap`; it needs unprivileged user namespaces), take a "
            "Container, or, where nothing can be lost, --data.reward.allow_unsandboxed true"
        )
    warnings.warn(f"programs run WITHOUT a sandbox, with your rights: {why}", stacklevel=3)
    return Unsandboxed()


def extract_code(completion: str) -> str:
    """The program in a completion: its last fenced block of Python, or all of it."""
    blocks = list(fenced_blocks(completion))
    marked = [code for language, code in blocks if language.lower() in ("python", "py")]
    chosen = (marked or [code for _, code in blocks])[-1:]
    return chosen[0] if chosen else completion


def fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each block of Markdown that is closed; one pass over the lines."""
    language, lines = None, []
    for line in io.StringIO(text, newline="\n"):
        if language is None:
            opening = _OPENING.match(line) if line.endswith("\n") else None
            language, lines = (opening["language"], []) if opening else (None, [])
        elif line.startswith("```") and not line[3:].strip(" \t\n"):
            yield language, "".join(lines)
            language = None
        else:
            lines.append(line)


def column(problem: Problem, name: str, flag: str) -> Any:
    """A column of the problem's row, as the task DatasetTask keeps it."""
    columns = problem.metadata.get("columns", {})
    if columns.get(name) in (None, "", [], {}):
        raise ValueError(
            f"{flag}: the problem has no {name!r}; its other columns are "
            f"{', '.join(columns) or 'none'}"
        )
    return columns[name]
