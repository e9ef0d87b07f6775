"""Imports point one way: each room of rlsgd imports from the floors below it and from itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlsgd

ROOT = Path(rlsgd.__file__).parent
FLOORS = (
    {"problems"},  # plain data
    {"types", "functional", "checkpoints", "layer_kinds", "distributed", "shard_index", "study"},
    {"provenance"},
    {"schedulers", "optimizers", "sharding", "deltas", "weight_sync", "html_report"},
    {
        "strategy",
        "models",
        "subnetwork",
        "rewards",
        "callbacks",
        "evaluation",
        "shared_prompts",
        "onednn",
    },
    {"sharded_models", "resume", "scoring"},
    {"rollout", "value_model", "analysis", "planner", "preparation"},
    {"algorithms", "data"},
    {"training_cli", "delta_command", "data_command"},
    {"cli"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ROOMS = {  # narrower than its floor
    "functional": {"functional"},
    "study": {"study"},
    "html_report": {"html_report", "study", "layer_kinds", "provenance"},
    "rewards": {"rewards", "problems"},
    "callbacks": {
        "callbacks",
        "checkpoints",
        "deltas",
        "distributed",
        "functional",
        "layer_kinds",
        "types",
        "problems",
    },
    "analysis": {"analysis", "checkpoints", "functional", "layer_kinds", "models"},
    "planner": {"planner", "functional", "layer_kinds", "models", "optimizers"},
    "preparation": {"preparation", "models", "problems", "rewards"},
}
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
    names -= {"rlsgd", "rlsgd.__version__"}
    rooms = {name.split(".")[1] for name in names if name.startswith("rlsgd.")}
    return rooms, {name.split(".")[0] for name in names if not name.startswith("rlsgd.")}


def room_of(module: str) -> str:
    return module.removesuffix(".py").split("/")[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_from_below_and_from_itself(module: str):
    room = room_of(module)
    rooms, packages = imported(module)
    if room == "__init__":
        assert not rooms and not packages, "importing rlsgd must cost nothing"
        return
    assert room in FLOOR, f"say in this test on which floor {room} is"
    assert rooms <= ROOMS.get(room, rooms), f"{room} may import from {ROOMS.get(room)} alone"
    above = {r for r in rooms if r != room and FLOOR[r] >= FLOOR[room]}
    assert not above, f"{module} imports upwards or sideways: {sorted(above)}"
    assert "vllm" not in packages or module.startswith("rollout/vllm_")
    assert "vllm" not in imported(module, at_top=True)[1], "vllm is imported when it is used"
    if room == "functional":
        assert packages <= {"__future__", "collections", "dataclasses", "math", "typing", "torch"}
    if room in ("study", "html_report"):
        assert not packages & TRAINING, "a study starts processes that train; it trains nothing"
    if room in ("rewards", "problems"):
        _, needed_at_once = imported(module, at_top=True)
        assert not needed_at_once & TRAINING, "a verifier's process must start fast"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_fits_on_a_few_screens(module: str):
    assert len((ROOT / module).read_text().splitlines()) <= 300


def test_an_algorithm_fits_on_one():
    shared = {"__init__", "base", "rl", "token_losses", "token_weights", "verifiable"}
    files = [p for p in (ROOT / "algorithms").glob("*.py") if p.stem not in shared]
    assert len(files) >= 10
    assert {p.stem for p in files if len(p.read_text().splitlines()) > 120} == set()


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
