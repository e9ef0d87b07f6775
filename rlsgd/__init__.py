"""rlsgd: optimizers in reinforcement-learning post-training of language models."""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsgd.core.renamed import install

if TYPE_CHECKING:
    from rlsgd.algorithms import *  # noqa: F403
    from rlsgd.callbacks import *  # noqa: F403
    from rlsgd.cli.python import Trained, train  # noqa: F401
    from rlsgd.data import *  # noqa: F403
    from rlsgd.optimizers import *  # noqa: F403
    from rlsgd.rewards import *  # noqa: F403

__version__ = "0.2.0"

# rooms whose classes are names of `rlsgd` too, imported when one is asked for
ROOMS = ("rewards", "optimizers", "callbacks", "data", "algorithms")

install()


@cache
def _rooms() -> dict[str, str]:
    """The room of each public class, read from the rooms' `__all__` without importing them."""
    found: dict[str, str] = {}
    for room in ROOMS:
        source = (Path(__file__).parent / room / "__init__.py").read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found |= dict.fromkeys(ast.literal_eval(node.value), room)
    return found


def __getattr__(name: str) -> Any:
    if name in ("train", "Trained"):
        return getattr(importlib.import_module("rlsgd.cli.python"), name)
    if not name.startswith("_") and name in (found := _rooms()):
        return getattr(importlib.import_module(f"rlsgd.{found[name]}"), name)
    raise AttributeError(f"module 'rlsgd' has no attribute {name!r}")
