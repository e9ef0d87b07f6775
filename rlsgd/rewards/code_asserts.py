"""Functions that test code calls and makes assertions about."""

from __future__ import annotations

import ast
import builtins
import json
from typing import Any

from rlsgd.core.problems import Problem
from rlsgd.rewards.code import PythonTests, Scoring, column, extract_code
from rlsgd.rewards.sandbox.base import Sandbox
from rlsgd.rewards.sandbox.session import Session

MESSAGES_KB = 64 * 1024  # of all arguments and values of one program's tests, as JSON


class AssertTests(PythonTests):
    """Tests that are Python code (HumanEval: `check(candidate)`; MBPP: a list of assertions).

    The tests run in a sandbox of their own: where they call the program's function, the call goes
    to the program's sandbox and a plain value comes back. So a program can neither see the tests
    nor touch what compares; arguments go by value, and values are numbers, text, bytes, None, the
    builtin containers and iterators of these.

    The tests are one text, or a list of texts that count one each. A test passes if it ends without
    an exception and has called the program.

    Args:
        tests_column: column with the tests.
        entry_point_column: column with the name of the function that is tested. A row without it is
            tested by the names that its tests use and do not define.
        setup_column: column with code that runs before every test (MBPP: `test_setup_code`).
        continue_question: the question is code and the completion continues it, as HumanEval has
            it for base models. The tests then take helpers of the question from the question, and
            an unfenced completion ends where its indentation does.
        scoring: `all` scores 1 if every test passes, else 0; `fraction` scores the share that does.
        seconds: wall clock for all tests of a program, less the sandboxes' start-up. It must be
            below --data.reward_timeout_seconds with the start-up (`benchmarks/bench_sandbox.py`).
        sandbox: place where programs run; by default the first that works here of `Bubblewrap` and
            `Landlock`.
        allow_unsandboxed: run programs with your own rights where neither works.
    """

    def __init__(
        self,
        tests_column: str = "test",
        entry_point_column: str = "entry_point",
        setup_column: str | None = None,
        continue_question: bool = False,
        scoring: Scoring = "all",
        seconds: float = 8.0,
        sandbox: Sandbox | None = None,
        allow_unsandboxed: bool = False,
    ) -> None:
        super().__init__(scoring, seconds, sandbox, allow_unsandboxed)
        self.tests_column = tests_column
        self.entry_point_column = entry_point_column
        self.setup_column = setup_column
        self.continue_question = continue_question

    def count_passed(self, completion: str, problem: Problem) -> tuple[int, int]:
        task = self._task(problem)
        code = extract_code(completion)
        if self.continue_question:
            same = code == completion
            code = problem.question + ("" if same else "\n") + (_indented(code) if same else code)
        program, payload = code.encode(errors="replace"), json.dumps(task).encode()
        with (
            self.sandbox.start("candidate", program, output_kb=MESSAGES_KB) as candidate,
            self.sandbox.start("judge", payload, output_kb=MESSAGES_KB) as judge,
        ):
            judge.wait_until_ready(self.seconds)
            candidate.wait_until_ready(self.seconds)
            return relay(judge, candidate), len(task["tests"])

    def _task(self, problem: Problem) -> dict[str, Any]:
        tests = column(problem, self.tests_column, "--data.reward.tests_column")
        tests = [tests] if isinstance(tests, str) else list(tests)
        columns = problem.metadata["columns"]
        setup = columns.get(self.setup_column) or "" if self.setup_column else ""
        if self.continue_question:
            setup = f"{problem.question}\n{setup}"
        entry_point = columns.get(self.entry_point_column)
        try:
            candidates = [entry_point] if entry_point else undefined_names(setup, *tests)
        except SyntaxError as error:
            raise ValueError(f"--data.reward.tests_column: not Python: {error}") from None
        return {
            "tests": tests,
            "setup": setup,
            "entry_point": entry_point,
            "candidates": candidates,
            "stop_at_failure": self.scoring == "all",
        }


def relay(judge: Session, candidate: Session) -> int:
    """Carry calls from the tests to the program until the verdicts are in; how many passed.

    A program that gives no answer, for whatever reason, passes no further test.

    Raises:
        ValueError: if the tests themselves are broken, or pass more than `MESSAGES_KB` in all.
    """
    passed = 0
    while line := judge.read_line():
        word, _, rest = line.partition(b" ")
        if word == b"broken":
            reason = rest.decode(errors="replace")
            raise ValueError(f"--data.reward.tests_column: the tests cannot run: {reason}")
        if word == b"call":
            try:
                candidate.write(rest + b"\n")
                answer = candidate.read_line()
                if not answer:
                    break
                judge.write(answer + b"\n")
            except BrokenPipeError:
                break
        passed += word == b"pass"
    if judge.is_over_limit:
        raise ValueError(
            f"--data.reward.tests_column: the tests pass more than {MESSAGES_KB // 1024} MiB"
        )
    return passed


def undefined_names(*sources: str) -> list[str]:
    """Names that code uses, and neither it nor Python defines."""
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    used = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    known = set(dir(builtins)) | {name.id for name in names if not isinstance(name.ctx, ast.Load)}
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            known.add(node.name)
        elif isinstance(node, ast.alias):
            known.add((node.asname or node.name).split(".")[0])
    return sorted(used - known)


def _indented(continuation: str) -> str:
    """The lines up to the first that starts at the margin, unless the first of all does."""
    lines = continuation.splitlines(keepends=True)
    at_margin = [i for i, line in enumerate(lines) if line.strip() and not line[0].isspace()]
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    return "".join(lines[: at_margin[0]]) if at_margin and at_margin[0] > first else continuation
