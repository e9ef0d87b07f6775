"""Texts that a verifier evaluates: each attempt fails behind a wall, and changes no later score."""

import os
import socket
import subprocess
import tempfile
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

import rlsgd
from rlsgd.core.problems import Problem
from rlsgd.rewards import MathVerify, ReasoningGymScore, Scorer, WeightedSum, guard
from rlsgd.rewards.isolation import IsolatedWorker
from rlsgd.rewards.sandbox.walls import NoWall
from tests.rewards.attacks import TEXTS
from tests.rewards.hostile_rewards import Evaluates, EvaluatesTogether
from tests.rewards.processes import is_running
from tests.rewards.sandboxes import NAMES, WORKING_WALLS
from tests.rewards.test_sandbox_attacks import answer_all

DONE = Problem("q", "'done'")
HONEST = [("6 * 7", Problem("q", "42"), 1.0), ("6 * 8", Problem("q", "42"), 0.0)]


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """What the texts are after."""
    monkeypatch.setenv("RLSGD_SECRET", "done")
    for name in ("secret", "1"):
        (tmp_path / name).write_text("done")
    victim = subprocess.Popen(["sleep", "600"])
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=answer_all, args=(server,), daemon=True).start()
    local = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    local.bind(f"\0rlsgd-{victim.pid}")
    yield {
        "FOLDER": str(tmp_path),
        "HOME": str(Path.home()),
        "ENTRIES": sorted(os.listdir(Path.home())),
        "VICTIM": victim.pid,
        "PORT": server.getsockname()[1],
        "NAME": f"rlsgd-{victim.pid}",
        "SOLUTIONS": str(Path(rlsgd.__file__).parent / "assets" / "small_programs.jsonl"),
        "SCRATCH": None,
    }
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    local.close()
    assert is_running(victim.pid), "the victim was hit"
    victim.kill()
    victim.wait()


def grade(wall, items, reward=None):
    worker = IsolatedWorker(reward or Evaluates(), timeout_seconds=600, walls=[wall])
    try:
        return worker.grade(items)
    finally:
        worker.close()


def items_of(surroundings):
    """Every text, each followed by a right and a wrong answer."""
    problem = Problem("q", "'done'", {"names": surroundings})
    honest = [(text, problem) for text, problem, _ in HONEST]
    return [item for text in TEXTS.values() for item in ((text, problem), *honest)]


def succeeded(grades):
    return {name for name, grade in zip(TEXTS, grades[::3], strict=True) if grade.score == 1.0}


def test_the_suite_is_large():
    assert len(TEXTS) >= 20


def test_every_attempt_succeeds_without_a_wall(surroundings, tmp_path, monkeypatch):
    monkeypatch.setattr("rlsgd.rewards.isolation.MEMORY_MB", 4096)
    grades = grade(NoWall, items_of(surroundings | {"SCRATCH": str(tmp_path)}))
    reasons = {name: each.failure for name, each in zip(TEXTS, grades[::3], strict=True)}
    assert succeeded(grades) == TEXTS.keys(), reasons


@pytest.mark.parametrize("wall", WORKING_WALLS, ids=NAMES)
def test_every_attempt_fails_and_changes_no_score(wall, surroundings):
    before = state_of(surroundings)
    children = set(children_of(os.getpid()))
    grades = grade(wall, items_of(surroundings))
    assert succeeded(grades) == set()
    for position, (_, _, score) in enumerate(HONEST, start=1):
        assert {each.score for each in grades[position::3]} == {score}
        assert {each.failure for each in grades[position::3]} == {None}
    assert state_of(surroundings) == before
    assert set(children_of(os.getpid())) == children


def state_of(surroundings):
    folder = Path(surroundings["FOLDER"])
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def children_of(process):
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [int(n) for task in tasks for n in (task / "children").read_text().split()]


# Texts that change what is scored after them, where that is in the same process.
TAMPERING = {
    "the reward": "setattr(REWARD, 'score', lambda *_: 1.0)",
    "a builtin": "setattr(__import__('builtins'), 'eval', lambda *_: 42)",
    "the grader": (
        "setattr(__import__('rlsgd.rewards.forks', fromlist=['x']), 'grade_safely', "
        "lambda r, *_, **__: __import__('rlsgd.rewards.base', fromlist=['x'])"
        ".Grade(1.0, {r.part_names[0]: 1.0}))"
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_a_text_changes_later_scores_in_one_process_alone(name):
    items = [(TAMPERING[name], DONE), *((text, problem) for text, problem, _ in HONEST)]
    together = [each.score for each in grade(NoWall, items, EvaluatesTogether())]
    assert together[2] == 1.0, "the text does not change what it is after"
    for wall in WORKING_WALLS:
        apart = [each.score for each in grade(wall, items)]
        assert apart[1:] == [score for _, _, score in HONEST]


@pytest.mark.parametrize("wall", WORKING_WALLS, ids=NAMES)
def test_what_a_fork_writes_is_no_other_forks_grade(wall):
    """A text finds its channel and writes grades for those after it, then hangs on to it."""
    line = '{"score": 1.0, "parts": {"evaluates": 1.0}, "failure": null, "answer": "x"}'
    forged = (
        f"[__import__('os').write(c, {(line + chr(10)).encode()!r} * 9) for c in (4,)] "
        "and __import__('os')._exit(0)"
    )
    wrong = ("6 * 8", Problem("q", "42"))
    grades = grade(wall, [(forged, DONE), wrong, wrong, wrong])
    assert [each.score for each in grades[1:]] == [0.0] * 3


@pytest.mark.parametrize("wall", WORKING_WALLS, ids=NAMES)
def test_nonsense_on_the_channel_is_a_failure(wall):
    said = ["{", "[]", '{"score": "1"}', '{"score": NaN, "parts": {}}', "[" * 10**5]
    texts = [f"__import__('os').write(4, {(s + chr(10)).encode()!r}) and 1" for s in said]
    grades = grade(wall, [(text, DONE) for text in texts])
    assert [each.failure is not None and each.score == 0.0 for each in grades] == [True] * len(said)


# --- the verifiers of reasoning_gym and math-verify ---
DATA_SETS = (
    *("countdown", "puzzle24", "n_queens", "spiral_matrix", "string_insertion"),
    *("binary_matrix", "simple_integration", "intermediate_integration"),
)
ATTACK = "__import__('os').system('echo executed > {proof}')"
FORMS = ("{}", "[{}]", "({},)", "[[{}]]", "1 + {}", "max({}, 2)", "x if {} else y")


@pytest.fixture(scope="module")
def rg_items(tmp_path_factory):
    from rlsgd.data.tasks.reasoning_gym import ReasoningGym

    proof = tmp_path_factory.mktemp("proof") / "proof"
    items = []
    for name in DATA_SETS:
        problem = ReasoningGym(name).validation_problems(1)[0]
        for form in FORMS:
            attack = form.format(ATTACK.format(proof=proof))
            items += [(f"<answer>{attack}</answer>", problem)]
        items += [(f"<answer>{problem.answer}</answer>", problem)]
    return items, proof


@pytest.mark.parametrize("wall", WORKING_WALLS, ids=NAMES)
def test_no_verifier_of_reasoning_gym_runs_a_text(wall, rg_items):
    items, proof = rg_items
    grades = grade(wall, items, ReasoningGymScore("answer_tag"))
    of_each = len(FORMS) + 1
    for number, name in enumerate(DATA_SETS):
        *attacks, honest = grades[number * of_each : (number + 1) * of_each]
        assert honest.score == 1.0, (name, honest)
        assert max(each.score for each in attacks) <= 0.05, name  # marks for any text
        assert {each.failure for each in attacks} == {None}, name
    assert not proof.exists()


def test_without_the_guard_it_would_run(rg_items, monkeypatch):
    items, proof = rg_items
    problem = next(p for _, p in items if p.metadata["source_dataset"] == "countdown")
    text = f"<answer>{ATTACK.format(proof=proof)}</answer>"
    monkeypatch.setattr(guard, "no_evaluation", nullcontext)
    ReasoningGymScore("answer_tag").score(text, problem)
    assert proof.exists()
    proof.unlink()


def test_every_data_set_scores_its_own_answers_as_without_the_guard():
    from reasoning_gym.factory import DATASETS, create_dataset

    guard.install()
    left_out = {"composite"}  # of others
    for name in sorted(DATASETS.keys() - left_out):
        try:
            dataset = create_dataset(name, seed=1, size=2)
            entries = [dataset[i] for i in range(2)]
        except Exception:  # needs a download or an argument
            continue
        for entry in entries:
            plain = dataset.score_answer(entry["answer"], entry)
            with guard.no_evaluation():
                assert dataset.score_answer(entry["answer"], entry) == plain, name


MATHS = [
    "__import__('os').system('true')",
    "().__class__.__base__.__subclasses__()",
    "lambdify([], 'open(1)')()",
    "exec('x = 1')",
    "\\text{__import__('os')}",
]


@pytest.mark.parametrize("wall", WORKING_WALLS, ids=NAMES)
def test_maths_is_scored_behind_the_wall(wall):
    right = [
        ("so $0.5$", "\\frac{1}{2}", 1.0),
        ("$1 + x^2$", "x^2+1", 1.0),
        ("it is 73", "72", 0.0),
    ]
    items = [(text, Problem("q", gold)) for text, gold, _ in right]
    for attack in MATHS:
        items += [(f"\\boxed{{{attack}}}", Problem("q", "72")), (f"${attack}$", Problem("q", "72"))]
    grades = grade(wall, [*items, *items[:3]], MathVerify())
    assert [each.score for each in grades[:3]] == [score for *_, score in right]
    assert grades[-3:] == grades[:3]
    assert {each.score for each in grades[3:-3]} == {0.0}


def test_arithmetic_by_hand():
    """What is left: no attribute, no function that takes text, no definition."""
    guard.install()
    for text in ("Integer(2)*3", "[[1, 2], 'a']", "-Symbol('x')**2/7", "sqrt(2) < pi", "max(1, 2)"):
        assert guard.is_arithmetic(compile(text, "<string>", "eval")), text
    for text in (
        *("().__class__", "f'{x.y}'", "lambda: 1", "[x for x in y]", "(x := 1)", "open('x')"),
        *(
            "__import__('os')",
            "lambdify(x, 'y')",
            "sympify('1')",
            "register_dataset(1, 2)",
            "print(1)",
        ),
    ):
        assert not guard.is_arithmetic(compile(text, "<string>", "eval")), text
    assert not guard.is_arithmetic(compile("import os", "<string>", "exec"))
    with guard.no_evaluation(), pytest.raises(guard.EvaluationRefused):
        eval("().__class__")
    assert eval("().__class__") is tuple  # outside of the block nothing is changed


# --- where no wall can be had ---
def test_without_a_wall_such_a_reward_is_refused_unless_allowed(monkeypatch):
    monkeypatch.setattr("rlsgd.rewards.isolation.WALLS", ())
    monkeypatch.setitem(IsolatedWorker.__init__.__kwdefaults__, "walls", (Broken,))
    with (
        Scorer(Evaluates()) as scorer,
        pytest.raises(ValueError, match="allow_unwalled_reward true"),
    ):
        scorer.wait_until_ready()
    with Scorer(Evaluates(), allow_unwalled=True) as scorer:
        with pytest.warns(UserWarning, match="Broken does not work here"):
            scorer.wait_until_ready()
        assert scorer.score(["6 * 7"], [Problem("q", "42")]).rewards == [1.0]


class Broken(NoWall):
    name = "Broken"

    def command(self):
        return ["/bin/false"]


def test_members_with_walls_of_their_own_are_scored_apart():
    from rlsgd.rewards import ExactAnswer, StdioTests

    reward = WeightedSum([StdioTests(), Evaluates(), ExactAnswer()], [1.0, 10.0, 100.0])
    problem = Problem("q", "42", {"columns": {"tests": [{"input": "", "output": "1"}]}})
    with Scorer(reward) as scorer:
        scores = scorer.score(["print(1)", "42", "boom("], [problem] * 3)
    assert scores.rewards == [1.0, 110.0, 0.0]
    assert scores.failures[1] is None
    assert scores.parts["stdio_tests"] == [1.0, 0.0, 0.0]
    assert "SyntaxError" in scores.failures[2]


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for wall in WORKING_WALLS:
        grade(wall, [("6 * 7", Problem("q", "42"))])
    assert list(tmp_path.iterdir()) == []
