"""By root and by nobody, in a venv and with a copied system Python: attempts, and verifiers."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import rlsgd
from rlsgd.rewards.sandbox.base import NOBODY
from tests.rewards.attacks import TEXTS, program_of
from tests.rewards.sandboxes import WORKING
from tests.rewards.test_attack_texts import ATTACK, DATA_SETS

KINDS = [kind.__name__ for kind in WORKING]
# Reads a program; prints what it printed in a sandbox of the kind, with the installation's Python.
RUN = """
import json, sys
from rlsgd.rewards import Bubblewrap, Landlock
kind, text = json.load(sys.stdin)
with {"Bubblewrap": Bubblewrap, "Landlock": Landlock}[kind](cpu_seconds=60).start(
    "script", text.encode(), b""
) as session:
    session.wait_until_ready(600)
    print(session.read_all().decode(), session.exit_code(), sys.prefix, sys.base_prefix)
"""


# Reads texts; prints the scores that a verifier gives them, which evaluates them behind a wall.
RUN_TEXTS = """
import json, sys
from hostile_rewards import Evaluates
from rlsgd.core.problems import Problem
from rlsgd.rewards.isolation import IsolatedWorker
from rlsgd.rewards.sandbox import walls
kind, texts, names = json.load(sys.stdin)
worker = IsolatedWorker(
    Evaluates(), timeout_seconds=600, walls=[getattr(walls, f"{kind}Wall")]
)
right, wrong = ("6 * 7", Problem("q", "42")), ("6 * 8", Problem("q", "42"))
problem = Problem("q", "'done'", {"names": names})
grades = worker.grade([item for text in texts for item in ((text, problem), right, wrong)])
worker.close()
print(json.dumps([grade.score for grade in grades]))
"""


# Reads completions of problems; prints their scores by the library's own verifiers.
RUN_VERIFIERS = """
import json, sys
from rlsgd.core.problems import Problem
from rlsgd.rewards import MathVerify, ReasoningGymScore
from rlsgd.rewards.isolation import IsolatedWorker
from rlsgd.rewards.sandbox import walls
kind, *lists = json.load(sys.stdin)
for reward, items in zip((ReasoningGymScore("answer_tag"), MathVerify()), lists):
    wall = getattr(walls, f"{kind}Wall")
    worker = IsolatedWorker(reward, timeout_seconds=600, walls=[wall])
    grades = worker.grade([(text, Problem(*problem)) for text, problem in items])
    worker.close()
    print(json.dumps([[grade.score, grade.failure] for grade in grades]))
"""
# Prints the paths of all modules that the verifiers import.
ASK = """
import sys, reasoning_gym, math_verify
print(*(path for m in list(sys.modules.values()) if (path := getattr(m, "__file__", None))))
"""


def copy_verifiers(folder):
    """Put the libraries of the verifiers, and what they import, into a site-packages."""
    asked = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    paths = [path.rpartition("/site-packages/") for path in asked.stdout.split()]
    found = {Path(site + "/site-packages", name.split("/")[0]) for site, at, name in paths if at}
    distributions = packages_distributions()
    for path in list(found):
        for name in distributions.get(path.name, []):
            found |= {*path.parent.glob(f"{name}.libs")}
            found |= {*path.parent.glob(f"{name.replace('-', '_')}-*.dist-info")}
    left_out = shutil.ignore_patterns("tests", "*.pyi", "sample_data")
    for path in found:
        copy = partial(shutil.copytree, ignore=left_out) if path.is_dir() else shutil.copy2
        copy(path, folder / path.name)


@pytest.fixture(scope="module")
def installations(open_folder):
    """A copied system Python with this package in its own site-packages, and a venv of it."""
    system = open_folder / "system"
    library = Path(os.__file__).parent
    left_out = shutil.ignore_patterns(
        "site-packages", "dist-packages", "test", "config-*", "__pycache__", "ensurepip"
    )
    copy = system / sys.platlibdir / library.name
    shutil.copytree(library, copy, ignore=left_out)
    (system / "bin").mkdir()
    python = system / "bin" / "python3"
    shutil.copy2(os.path.realpath(sys.executable), python)
    for path in Path(sys.base_prefix, "lib").glob("libpython*.so.*"):
        shutil.copy2(path, system / "lib" / path.name)
    package = copy / "site-packages" / "rlsgd"
    shutil.copytree(Path(rlsgd.__file__).parent, package, ignore=left_out)
    shutil.copy2(Path(__file__).with_name("hostile_rewards.py"), copy / "site-packages")
    copy_verifiers(copy / "site-packages")
    env = {"LD_LIBRARY_PATH": str(system / "lib")}
    venv = open_folder / "venv"
    command = [python, "-m", "venv", "--without-pip", "--system-site-packages", venv]
    subprocess.run(command, check=True, env=env)
    for path in open_folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    return {"copied system Python": python, "venv": venv / "bin" / "python"}, env, package


@pytest.mark.parametrize("user", [None, NOBODY], ids=["own user", "nobody"])
@pytest.mark.parametrize("where", ["copied system Python", "venv"])
@pytest.mark.parametrize("kind", KINDS)
def test_wherever_python_comes_from_and_whoever_trains(
    kind, where, user, installations, surroundings, open_folder
):
    """The tests and solutions lie in `base_prefix` here."""
    pythons, env, package = installations
    surroundings |= {"CODE": str(package / "__init__.py"), "SITE": str(package.parent)}
    surroundings["SOLUTIONS"] = str(package / "assets" / "small_programs.jsonl")
    given = [kind, program_of(surroundings)]
    *succeeded, last = run_as(user, [pythons[where], "-c", RUN], given, env, open_folder)
    assert succeeded == []
    assert last.split()[:2] == ["0", str(pythons[where].parents[1])]
    texts = {name: text for name, text in TEXTS.items() if name not in ("connect", "home")}
    given = [kind, list(texts.values()), surroundings | {"SCRATCH": None, "PORT": 0, "HOME": "/"}]
    (scores,) = run_as(user, [pythons[where], "-c", RUN_TEXTS], given, env, open_folder)
    assert json.loads(scores) == [0.0, 1.0, 0.0] * len(texts)


@pytest.mark.parametrize("user", [None, NOBODY], ids=["own user", "nobody"])
@pytest.mark.parametrize("where", ["copied system Python", "venv"])
@pytest.mark.parametrize("kind", KINDS)
def test_verifiers_score_and_run_no_text_wherever(kind, where, user, installations, open_folder):
    from rlsgd.data.tasks.reasoning_gym import ReasoningGym

    pythons, env, _ = installations
    place = Path(tempfile.mkdtemp(dir=open_folder))
    place.chmod(0o777)
    attack = ATTACK.format(proof=place / "proof")
    sets = {name: ReasoningGym(name).validation_problems(1)[0] for name in DATA_SETS}
    puzzles = [(p.question, p.answer, p.metadata) for p in sets.values()]
    gym = [
        (f"<answer>{text}</answer>", problem)
        for problem in puzzles
        for text in (f"[{attack}]", problem[1])
    ]
    number = ("q", "\\frac{1}{2}", {})
    maths = [(text, number) for text in (f"\\boxed{{{attack}}}", "so $0.5$", "it is 73")]
    run = [pythons[where], "-c", RUN_VERIFIERS]
    found = [json.loads(line) for line in run_as(user, run, [kind, gym, maths], env, open_folder)]
    assert [score for score, _ in found[0][1::2]] == [1.0] * len(puzzles)
    assert max(score for score, _ in found[0][::2]) <= 0.05  # marks for any text
    assert {failure for _, failure in found[0]} == {None}
    assert [score for score, _ in found[1]] == [0.0, 1.0, 0.0]
    assert not (place / "proof").exists()


def run_as(user, command, given, env, open_folder):
    """The lines that a command prints, run by a user with a home folder of its own."""
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    home = Path(tempfile.mkdtemp(dir=open_folder))
    if user is not None:
        os.chown(home, user, user)
    more = {"HOME": str(home), "TMPDIR": str(home), "PATH": os.environ["PATH"]}
    found = subprocess.run(
        command,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env={**env, **more, "RLSGD_SECRET": "done"},
        cwd="/",
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        timeout=600,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()
