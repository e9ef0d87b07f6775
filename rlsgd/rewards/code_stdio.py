"""Programs that read standard input and write standard output."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from rlsgd.core.problems import Problem
from rlsgd.rewards.code import PythonTests, Scoring, column, extract_code
from rlsgd.rewards.sandbox.base import Sandbox


class StdioTests(PythonTests):
    """Tests that give a program an input and compare what it prints (APPS, LiveCodeBench).

    Every test starts the program anew, and it must exit with 0. The expected output never enters
    the sandbox. Lines are compared word by word: white space between words, around lines and at the
    end does not count. A word that is expected as a decimal fraction (`0.5`, `1e-3`) also equals a
    number within the tolerance; any other must be the same text.

    The tests are a list of `{input, output}`, or `{inputs: [...], outputs: [...]}` (the singular
    will do), or JSON of either.

    Args:
        tests_column: column with the tests.
        tolerance: the absolute or relative error that a decimal fraction may have.
        scoring: `all` scores 1 if every test passes, else 0; `fraction` scores the share that does.
        seconds: wall clock for all tests of a program, less the sandboxes' start-up. It must be
            below --data.reward_timeout_seconds with the start-up (`benchmarks/bench_sandbox.py`).
        sandbox: place where programs run; by default the first that works here of `Bubblewrap` and
            `Landlock`.
        allow_unsandboxed: run programs with your own rights where neither works.
    """

    def __init__(
        self,
        tests_column: str = "tests",
        tolerance: float = 1e-6,
        scoring: Scoring = "all",
        seconds: float = 8.0,
        sandbox: Sandbox | None = None,
        allow_unsandboxed: bool = False,
    ) -> None:
        super().__init__(scoring, seconds, sandbox, allow_unsandboxed)
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"--data.reward.tolerance must be at least 0, finite; got {tolerance}")
        self.tests_column = tests_column
        self.tolerance = tolerance

    def count_passed(self, completion: str, problem: Problem) -> tuple[int, int]:
        cases = read_cases(column(problem, self.tests_column, "--data.reward.tests_column"))
        program = extract_code(completion).encode(errors="replace")
        seconds, passed = self.seconds, 0
        for given, expected in cases:
            output, used = self._run(program, given.encode(errors="replace"), seconds)
            right = output is not None and same_output(output, expected, tolerance=self.tolerance)
            seconds -= used
            passed += right
            if seconds <= 0 or (not right and self.scoring == "all"):
                break
        return passed, len(cases)

    def _run(self, program: bytes, given: bytes, seconds: float) -> tuple[str | None, float]:
        """What the program prints, None if it fails; and the seconds that it ran."""
        with self.sandbox.start("script", program, standard_input=given) as session:
            session.wait_until_ready(seconds)
            started = time.monotonic()
            output = session.read_all()
            if output is None or session.exit_code() != 0:
                return None, time.monotonic() - started
        return output.decode(errors="replace"), time.monotonic() - started


def read_cases(tests: Any) -> list[tuple[str, str]]:
    """Pairs of input and expected output.

    Raises:
        ValueError: if the tests have none of the forms that `StdioTests` names, or are empty.
    """
    try:
        tests = json.loads(tests) if isinstance(tests, str) else tests
        if isinstance(tests, dict):
            inputs = tests["inputs"] if "inputs" in tests else tests["input"]
            outputs = tests["outputs"] if "outputs" in tests else tests["output"]
            pairs = list(zip(inputs, outputs, strict=True))
        else:
            pairs = [(test["input"], test["output"]) for test in tests]
        if not pairs or not all(isinstance(text, str) for pair in pairs for text in pair):
            raise TypeError("there are none, or some are not text")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "--data.reward.tests_column: the tests are no list of {input, output}: "
            f"{type(error).__name__}: {error}"
        ) from None
    return pairs


def same_output(printed: str, expected: str, *, tolerance: float) -> bool:
    """Whether the words of every line agree; a line break at the end does not count."""
    lines, expected_lines = _words(printed), _words(expected)
    return len(lines) == len(expected_lines) and all(
        len(line) == len(expected_line)
        and all(_same_word(*words, tolerance) for words in zip(line, expected_line, strict=True))
        for line, expected_line in zip(lines, expected_lines, strict=True)
    )


def _words(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().split("\n")]


def _same_word(word: str, expected: str, tolerance: float) -> bool:
    if word == expected:
        return True
    try:
        int(expected)
        return False  # whole numbers are exact
    except ValueError:
        pass
    try:
        number, expected_number = float(word), float(expected)
    except ValueError:
        return False
    # nan and the infinities are equal as text alone
    return math.isfinite(number) and math.isclose(
        number, expected_number, rel_tol=tolerance, abs_tol=tolerance
    )
