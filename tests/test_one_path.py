"""The path of one iteration in CONTRIBUTING is there, and short enough to be read."""

import ast
import re
from pathlib import Path

from lightning.pytorch import LightningModule

from rlsgd.algorithms import GRPO

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"^( *)(rlsgd/\S+\.py) +([\w.]+)", re.MULTILINE)


def path() -> list[tuple[int, str, str]]:
    """Indentation, file and function of each line."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = text.split("## One GRPO iteration")[1].split("```text\n")[1].split("```")[0]
    lines = [(len(m[1]), m[2], m[3]) for m in LINE.finditer(block)]
    assert len(lines) == len(block.splitlines())
    return lines


def function(file: str, name: str) -> ast.FunctionDef:
    node: ast.AST = ast.parse((ROOT / file).read_text())
    for part in name.split("."):
        [node] = [n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == part]
    assert isinstance(node, ast.FunctionDef)
    return node


def called(node: ast.FunctionDef) -> set[str]:
    """Last names of everything that a function calls."""
    targets = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
    return {ast.unparse(target).split(".")[-1] for target in targets}


def test_each_function_calls_the_ones_below_it():
    above: list[tuple[int, ast.FunctionDef]] = []
    for indentation, file, name in path():
        node = function(file, name)
        above = [(depth, caller) for depth, caller in above if depth < indentation]
        if above:
            assert node.name in called(above[-1][1]), f"{above[-1][1].name} calls no {name}"
        else:
            assert indentation == 0
        above.append((indentation, node))


def test_it_is_nine_files_of_1400_lines_and_two_base_classes():
    files = {file for _, file, _ in path()}
    assert len(files) <= 9
    assert sum(len((ROOT / file).read_text().splitlines()) for file in files) <= 1400
    bases = GRPO.__mro__[1 : GRPO.__mro__.index(LightningModule)]
    assert [base.__name__ for base in bases] == ["RLModule", "PolicyModule"]
    files_of_bases = {f"{base.__module__.replace('.', '/')}.py" for base in bases}
    assert files_of_bases <= files, "the base classes are read too"
