"""rlsgd: optimizers in reinforcement-learning post-training of language models."""

from __future__ import annotations

import importlib
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

# rooms whose classes are names of `rlsgd` too, imported when one is asked for; the light ones first
ROOMS = ("rewards", "optimizers", "callbacks", "data", "algorithms")

install()


def __getattr__(name: str) -> Any:
    if name in ("train", "Trained"):
        return getattr(importlib.import_module("rlsgd.cli.python"), name)
    if not name.startswith("_") and name[:1].isupper():
        for room in ROOMS:
            module = importlib.import_module(f"rlsgd.{room}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module 'rlsgd' has no attribute {name!r}")
