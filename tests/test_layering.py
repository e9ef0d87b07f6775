"""Imports point one way: a room of rlsgd imports from itself and from the rooms before it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import rlsgd

ROOT = Path(rlsgd.__file__).parent
ROOMS = (  # in the order in which they may import: each from those above it in this list
    "core",  # problems, rollouts, checkpoints on disk: imports nothing of rlsgd
    "functional",  # maths over tensors: knows torch, and no flag
    "models",
    "optimizers",
    "rewards",
    "deltas",
    "rollout",
    "callbacks",
    "study",  # starts processes that train
    "preparation",
    "data",
    "algorithms",
    "resume",
    "report",
    "planner",
    "analysis",
    "integrations",
    "cli",
)
LOOSE = {"__init__", "__main__"}
TRAINING = {"torch", "lightning", "transformers", "torchmetrics", "datasets", "vllm"}
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(node: ast.AST, *, at_top: bool) -> Iterator[str]:
    """Dotted names that are imported; only when the module itself is imported, or anywhere."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif not (at_top and (is_type_checking(child) or isinstance(child, ast.FunctionDef))):
            yield from imports(child, at_top=at_top)


def imported(module: str, *, at_top: bool = False) -> tuple[set[str], set[str]]:
    """Rooms of rlsgd, and packages, that a module imports."""
    names = set(imports(ast.parse((ROOT / module).read_text()), at_top=at_top))
    names -= {"rlsgd", "rlsgd.__version__", "rlsgd.ROOMS"}
    rooms = {name.split(".")[1] for name in names if name.startswith("rlsgd.")}
    return rooms, {name.split(".")[0] for name in names if not name.startswith("rlsgd.")}


def modules_of(*rooms: str) -> list[str]:
    return [module for module in MODULES if module.split("/")[0] in rooms]


def test_every_module_is_in_a_room():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert folders == set(ROOMS)
    assert {path.stem for path in ROOT.glob("*.py")} == LOOSE


def test_a_room_imports_from_itself_and_from_rooms_before_it():
    backwards = {}
    for module in modules_of(*ROOMS):
        room = module.split("/")[0]
        allowed = set(ROOMS[: ROOMS.index(room) + 1])
        if ahead := imported(module)[0] - allowed:
            backwards[module] = sorted(ahead)
    assert not backwards


def test_packages_are_imported_where_they_belong():
    for module in MODULES:
        assert "vllm" not in imported(module, at_top=True)[1], "vllm is imported when it is used"
        assert "vllm" not in imported(module)[1] or module.startswith("rollout/vllm/")
    for module in modules_of("functional"):
        pure = {"__future__", "collections", "dataclasses", "math", "typing", "torch"}
        assert imported(module)[1] <= pure
    for module in modules_of("study", "report"):
        assert not imported(module)[1] & TRAINING, "a study starts processes; it trains nothing"
    for module in ["core/problems.py", *modules_of("rewards")]:
        assert not imported(module, at_top=True)[1] & TRAINING, "a verifier must start fast"


def test_the_loader_and_the_evaluator_say_what_they_ask_of_others():
    """No module, data or trainer is of any type: what these need of them is a protocol."""
    for file in ("rollout/loader.py", "algorithms/evaluation.py"):
        tree = ast.parse((ROOT / file).read_text())
        untyped = {
            node.arg
            for node in ast.walk(tree)
            if isinstance(node, ast.arg) and "Any" in ast.unparse(node.annotation or ast.Tuple([]))
        }
        fields = {
            ast.unparse(node.target)
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign) and "Any" in ast.unparse(node.annotation)
        }
        assert untyped | fields <= {"value", "options"}, "of what is logged alone"


def test_a_module_fits_on_a_few_screens():
    lines = {module: len((ROOT / module).read_text().splitlines()) for module in MODULES}
    assert {module: count for module, count in lines.items() if count > 300} == {}


def test_an_algorithm_fits_on_one():
    names = set((ROOT / "algorithms/__init__.py").read_text().split('"')[1::2])
    files = [p for p in modules_of("algorithms") if names & classes(p)]
    assert len(files) >= 10
    bases = {"algorithms/base.py", "algorithms/rl.py", "algorithms/evaluation.py"}
    assert {p for p in files if len((ROOT / p).read_text().splitlines()) > 120} <= bases


def classes(module: str) -> set[str]:
    tree = ast.parse((ROOT / module).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_the_rules_see_what_they_forbid():
    source = """
from typing import TYPE_CHECKING
import torch.nn as nn
if TYPE_CHECKING:
    from lightning import Trainer
try:
    import vllm
except ImportError:
    pass
class A:
    import datasets
    def f(self):
        from rlsgd.cli import main
"""
    everything = {"typing.TYPE_CHECKING", "torch.nn", "lightning.Trainer", "vllm", "datasets"}
    assert set(imports(ast.parse(source), at_top=False)) == {*everything, "rlsgd.cli.main"}
    at_top = everything - {"lightning.Trainer"}
    assert set(imports(ast.parse(source), at_top=True)) == at_top
