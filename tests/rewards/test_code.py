"""Rewards of generated programs: what right and wrong programs score, and what cheats score."""

import json
from functools import partial

import pytest

from rlsgd import rewards
from rlsgd.core.problems import Problem
from rlsgd.rewards import Scorer, Unsandboxed
from rlsgd.rewards.code import extract_code
from rlsgd.rewards.code_stdio import read_cases, same_output
from rlsgd.rewards.isolation import MEMORY_MB
from tests.rewards.hostile_rewards import TakesMemory
from tests.rewards.sandboxes import WORKING

# So much wall clock that no verdict depends on how busy the machine is.
AssertTests = partial(rewards.AssertTests, seconds=600)
StdioTests = partial(rewards.StdioTests, seconds=600)
CHECK = """
import math
def check(candidate):
    assert candidate(2) == 4
    assert math.isclose(candidate(3), 9)
    assert all(map(lambda x: candidate(x) == x * x, range(4)))
"""
SQUARE = "def square(x): return x * x"
# Each scores 0 although it does not compute a square. Time-limited ones are in `ENDLESS`.
CHEATS = {
    "equal to everything": (
        "class Same:\n    __eq__ = lambda *_: True\n    __float__ = lambda _: 9.0\n"
        "square = lambda x: Same()"
    ),
    "a number equal to everything": (
        "class Same(int):\n    __eq__ = lambda *_: True\n    __hash__ = int.__hash__\n"
        "square = lambda x: Same(9)"
    ),
    "patched comparison": (
        "import builtins, math, operator, unittest\n"
        "math.isclose = operator.eq = builtins.all = builtins.map = lambda *_, **__: True\n"
        "builtins.AssertionError = unittest.TestCase.assertEqual = print\nsquare = lambda x: 4"
    ),
    "overwritten checker": (
        "import __main__, sys\ndef check(candidate): pass\n"
        "for module in (__main__, *sys.modules.values()):\n"
        "    for name in ('check', 'judge', 'decode', 'encode', 'exception_named'):\n"
        "        if hasattr(module, name): setattr(module, name, lambda *_: None)\n"
        "square = lambda x: 4"
    ),
    "overwritten checker's files": (
        "import os, sys\nfor path in (__file__, sys.argv[0], '/tmp/tests.py', 'tests.py'):\n"
        "    try: open(path, 'w').write('def check(candidate): pass')\n    except OSError: pass\n"
        "square = lambda x: 4"
    ),
    "verdicts of its own": (
        "import os\nfor number in range(64):\n"
        "    try: os.write(number, b'pass\\npass\\n')\n    except OSError: pass\n"
        "square = lambda x: 4"
    ),
    "verdicts as answers": (
        "import os\ndef square(x):\n    for number in range(3, 64):\n"
        "        try: os.write(number, b'pass\\n' * 9)\n        except OSError: pass\n"
    ),
    "the tests, found in memory": (
        "import sys\ndef square(x):\n    frame, seen = sys._getframe(), []\n"
        "    while frame:\n        seen += [frame.f_globals, frame.f_locals]\n"
        "        frame = frame.f_back\n"
        "    seen += [sys.argv, sys.orig_argv]\n"
        "    return x * x if ' '.join(['assert', 'candidate']) in repr(seen) else 0"
    ),
    "exit 0 early": "import sys\nsys.exit(0)",
    "exit 0 at once": "import os\nos._exit(0)",
    "exit 0 when called": "def square(x): raise SystemExit(0)",
    "exit 0 at once when called": "import os\ndef square(x): os._exit(0)",
    "end of iteration late": (
        "calls = []\ndef square(x):\n    calls.append(x)\n"
        "    if len(calls) > 2: raise StopIteration\n    return x * x"
    ),
    "not a number": "square = lambda x: float('nan')",
    "killing the parent": "import os\nos.kill(os.getppid(), 9)\nsquare = lambda x: 4",
    "memory bomb": "square = lambda x: [0] * 10**10",
    "huge value": "square = lambda x: 'x' * 10**7",
    "deep value": "value = []\nfor _ in range(10**5): value = [value]\nsquare = lambda x: value",
    "huge number": "square = lambda x: 10 ** 100_000",
    "huge output": "def square(x):\n    for _ in range(10**4): print('x' * 10**4)",
    "endless value": "import itertools\nsquare = lambda x: itertools.count()",
    "no function": "triangle = lambda x: x * x",
    "not Python": "def square(x) return x * x",
    "nothing": "",
}
ENDLESS = {
    "loop": "def square(x):\n    while True: pass",
    "loop at once": "while True: pass",
    "sleep": "import time\nsquare = lambda x: time.sleep(600)",
}


@pytest.fixture(scope="module", params=WORKING, ids=lambda kind: kind.__name__)
def sandbox(request):
    return request.param(memory_mb=128)


@pytest.fixture(scope="module")
def one_sandbox():
    """For what does not depend on the kind."""
    return WORKING[0](memory_mb=128)


def problem(question="q", **columns):
    return Problem(question, "a", {"columns": columns})


SQUARES = problem(test=CHECK, entry_point="square")


def fraction(reward_class, sandbox, completion, tests, **options):
    reward = reward_class(sandbox=sandbox, scoring="fraction", **options)
    return reward.score(completion, problem(**{reward.tests_column: tests}))


def test_right_program_scores_1_with_full_marks(sandbox):
    reward = AssertTests(sandbox=sandbox)
    assert reward.score(SQUARE, SQUARES) == reward.full_marks == 1
    assert reward.score("def square(x): return 4", SQUARES) == 0


def test_what_a_right_program_prints_does_not_count(one_sandbox):
    program = "import os\ndef square(x):\n    print('4'); os.write(1, b'x\\n')\n    return x * x"
    assert AssertTests(sandbox=one_sandbox).score(program, SQUARES) == 1


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheat_scores_0(cheat, one_sandbox):
    assert AssertTests(sandbox=one_sandbox).score(CHEATS[cheat], SQUARES) == 0


@pytest.mark.parametrize("cheat", ENDLESS)
def test_endless_call_scores_0(cheat, one_sandbox):
    assert AssertTests(sandbox=one_sandbox, seconds=0.3).score(ENDLESS[cheat], SQUARES) == 0


def test_one_hostile_completion_does_not_change_the_others(one_sandbox):
    completions = [SQUARE, CHEATS["exit 0 at once"], SQUARE, CHEATS["memory bomb"], SQUARE]
    with Scorer(AssertTests(sandbox=one_sandbox), timeout_seconds=600) as scorer:
        scores = scorer.score(completions, [SQUARES] * 5)
    assert scores.rewards == [1, 0, 1, 0, 1]
    assert scores.failures == [None] * 5  # they are wrong programs, not broken verifiers


def test_the_worker_beside_the_sandbox_has_a_limit_of_memory_too(one_sandbox):
    """Whatever a program makes it hold; a program's own limit may be above it."""
    row = problem(tests=[{"input": "", "output": "1"}])
    with Scorer(TakesMemory(sandbox=one_sandbox, seconds=600)) as scorer:
        scores = scorer.score(["256", str(MEMORY_MB), "256"], [row] * 3)
    assert scores.rewards == [1, 0, 1]
    assert scores.failures == [None, "MemoryError: ", None]
    large = type(one_sandbox)(memory_mb=2 * MEMORY_MB)
    with Scorer(StdioTests(sandbox=large)) as scorer:
        program = f"block = bytearray({MEMORY_MB} * 2**20)\nprint(1)"
        assert scorer.score([program], [row]).rewards == [1]


VALUES = [
    *("None", "True", "3", "-(10 ** 5000)", "0.1", "1e400", "2 + 3j", r"'ä\n\0'", r"b'\x00\xff'"),
    *("[1, [2]]", "()", "(1, (2,))", "{1, 2}", "frozenset({(1, 2)})", "{'a': 1, (1, 2): [None]}"),
    *("[]", "range(3)"),
]


def test_values_cross_both_ways_with_their_types(one_sandbox):
    test = "value = {}\nassert same(value) == value and type(same(value)) is type(value)"
    tests = [test.format(value) for value in VALUES]
    assert fraction(AssertTests, one_sandbox, "def same(x): return x", tests) == 1


def test_exceptions_iterators_and_keywords_cross(one_sandbox):
    program = """
class Own(Exception): pass
def fail(kind): raise {"own": Own, "key": KeyError, "stop": StopIteration}[kind]
def numbers(*, count): yield from range(count)
"""
    raises = "try: fail({!r})\nexcept {}: pass\nelse: assert False"
    tests = [
        raises.format("key", "KeyError"),
        raises.format("own", "RuntimeError"),
        raises.format("stop", "RuntimeError"),
        raises.format("own", "KeyError"),  # another exception: fails
        "assert list(numbers(count=3)) == [0, 1, 2]",
        "assert True",  # never calls the program: proves nothing
    ]
    assert fraction(AssertTests, one_sandbox, program, tests) == pytest.approx(4 / 6, rel=1e-15)


def test_state_lasts_for_all_tests_of_a_program(one_sandbox):
    program = "seen = []\ndef count(x):\n    seen.append(x)\n    return len(seen)"
    assert (
        fraction(AssertTests, one_sandbox, program, [f"assert count(0) == {n}" for n in (1, 2)])
        == 1
    )


def test_setup_runs_before_every_test(one_sandbox):
    row = problem(test=["assert twice(BASE) == 4"] * 2, prelude="BASE = 2")
    reward = AssertTests(sandbox=one_sandbox, setup_column="prelude")
    assert reward.score("def twice(x): return 2 * x", row) == 1
    with pytest.raises(ValueError, match="the tests cannot run"):  # BASE is nowhere defined
        AssertTests(sandbox=one_sandbox).score("def twice(x): return 2 * x", row)


def test_completion_may_continue_the_question(one_sandbox):
    question = 'def helper(x): return x + 1\ndef square(x):\n    """The square."""\n'
    row = problem(question, test="def check(f): assert f(3) == helper(8)", entry_point="square")
    reward = AssertTests(sandbox=one_sandbox, continue_question=True)
    assert reward.score("    return x * x\n", row) == 1
    assert reward.score("    return x * x\nprint(square(\n", row) == 1  # begins something new
    assert reward.score(f"```python\n{SQUARE}\n```", row) == 1
    assert reward.score("    return x + x\n", row) == 0
    assert reward.score("    return 8\ndef helper(x): return 8\n", row) == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "the problem has no 'test'; its other columns are none"),
        ({"test": []}, "the problem has no 'test'"),
        ({"test": "def check(:"}, "not Python"),
        ({"test": "assert f(object()) == 1"}, "a value of type object cannot leave its process"),
        ({"test": "x = f(1)", "setup": "1 / 0"}, "the tests cannot run: ZeroDivisionError"),
    ],
)
def test_broken_tests_are_no_fault_of_the_program(columns, message, one_sandbox):
    reward = AssertTests(sandbox=one_sandbox, setup_column="setup")
    with pytest.raises(ValueError, match=f"--data.reward.tests_column: .*{message}"):
        reward.score("def f(x): return 1", problem(**columns))


def test_input_and_output(sandbox):
    program = "n = int(input())\nprint(sum(map(int, input().split())) / n)"
    tests = [
        {"input": "2\n1 2\n", "output": "1.5\n"},
        {"input": "1\n4", "output": "4.0"},
        {"input": "0\n\n", "output": "0"},  # crashes
        {"input": "2\n1 3", "output": "3.0"},  # prints 2.0
    ]
    assert fraction(StdioTests, sandbox, program, tests) == 0.5
    assert StdioTests(sandbox=sandbox).score(program, problem(tests=tests[:2])) == 1
    assert StdioTests(sandbox=sandbox).score(program, problem(tests=tests)) == 0


def test_nothing_is_left_for_the_next_start(sandbox):
    program = """
import os
print(os.path.exists("/tmp/left"))
try: open("/tmp/left", "w").write("x")
except OSError: pass
"""
    assert fraction(StdioTests, sandbox, program, [{"input": "", "output": "False"}] * 2) == 1


def test_time_is_shared_by_the_tests_of_a_program(one_sandbox, monkeypatch):
    given = []

    def run(self, program, text, seconds):
        given.append(seconds)
        return "1", {b"go": 2.0, b"wait": 6.0}[text]

    monkeypatch.setattr(rewards.StdioTests, "_run", run)
    tests = [{"input": text, "output": "1"} for text in ("go", "go", "wait", "go")]
    assert fraction(StdioTests, one_sandbox, "", tests, seconds=8) == 3 / 4
    assert given == [8.0, 6.0, 4.0]  # there is no time for the last


@pytest.mark.parametrize(
    "tests",
    [
        [{"input": "1", "output": "2"}, {"input": "3", "output": "4"}],
        {"inputs": ["1", "3"], "outputs": ["2", "4"]},
        {"input": ["1", "3"], "output": ["2", "4"]},
    ],
)
def test_forms_of_cases(tests):
    assert read_cases(tests) == read_cases(json.dumps(tests)) == [("1", "2"), ("3", "4")]


@pytest.mark.parametrize(
    "tests", [[], "[]", "{", "3", [{"input": "1"}], {"inputs": ["1"], "outputs": []}, [[1, 2]]]
)
def test_other_forms_are_refused(tests):
    with pytest.raises(ValueError, match=r"--data.reward.tests_column: the tests are no list"):
        read_cases(tests)


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n3\n\n", " 1  2 \n3", True),
        ("1 2 3", "1 2\n3", False),
        ("1\n\n2", "1\n2", False),
        ("0.3333333", "0.33333333", True),  # 3.3e-8 apart
        ("0.33333", "0.33333333", False),  # 3.3e-6 apart
        ("1000000.5", "1000000.0", True),  # 5e-7 of the number
        ("1000002.5", "1000000.0", False),
        ("1", "1.0", True),
        ("1.0", "1", False),
        ("1000001", "1000000", False),  # whole numbers are exact
        ("nan", "nan", True),
        ("nan", "1.0", False),
        ("inf", "1e400", False),
        ("YES", "Yes", False),
        ("", "", True),
        ("", "0", False),
    ],
)
def test_comparison_of_output(printed, expected, same):
    assert same_output(printed, expected, tolerance=1e-6) is same


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("x = 1", "x = 1"),
        ("Text.\n```python\nx = 1\n```\nMore.", "x = 1\n"),
        ("```python\nx = 1\n```\n```py\nx = 2\n```\n", "x = 2\n"),
        ("```Python\nx = 1\n```\n```\noutput\n```", "x = 1\n"),
        ("```text\nx = 1\n```\n```\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1", "```python\nx = 1"),  # cut off: not Python
    ],
)
def test_program_in_a_completion(completion, code):
    assert extract_code(completion) == code


def test_answers_are_programs(one_sandbox):
    reward = AssertTests(sandbox=one_sandbox)
    assert reward.answer_of("Say\n```\nx = 1\n```") == "x = 1"
    assert reward.answer_of(" \n") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "some"}, "--data.reward.scoring must be one of all, fraction; got 'some'"),
        ({"seconds": 0}, "--data.reward.seconds must be positive and finite; got 0"),
        ({"tolerance": -1}, "--data.reward.tolerance must be at least 0, finite; got -1"),
    ],
)
def test_bad_flags(options, message):
    with pytest.raises(ValueError, match=message):
        StdioTests(sandbox=Unsandboxed(), **options)
