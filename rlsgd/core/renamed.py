"""Modules that moved in 0.2.0: their old names work for one release, with a warning.

A config or a script of 0.1 says `rlsgd.strategy.FSDP2Strategy`. The finder below answers for old
names alone, so a name of today costs nothing and no old module has to stay on disk.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

RENAMED = {
    "rlsgd.problems": "rlsgd.core.problems",
    "rlsgd.types": "rlsgd.core.types",
    "rlsgd.distributed": "rlsgd.core.distributed",
    "rlsgd.checkpoints": "rlsgd.core.checkpoints",
    "rlsgd.layer_kinds": "rlsgd.core.layer_kinds",
    "rlsgd.sharded_models": "rlsgd.models.sharded_loading",
    "rlsgd.sharding": "rlsgd.models.sharding",
    "rlsgd.strategy": "rlsgd.models.strategy",
    "rlsgd.shard_index": "rlsgd.models.shard_index",
    "rlsgd.scoring": "rlsgd.models.scoring",
    "rlsgd.shared_prompts": "rlsgd.models.shared_prompts",
    "rlsgd.value_model": "rlsgd.models.value_model",
    "rlsgd.onednn": "rlsgd.models.onednn",
    "rlsgd.subnetwork": "rlsgd.models.subnetwork",
    "rlsgd.schedulers": "rlsgd.optimizers.schedulers",
    "rlsgd.weight_sync": "rlsgd.rollout.vllm.weight_sync",
    "rlsgd.rollout.vllm_engine": "rlsgd.rollout.vllm.engine",
    "rlsgd.rollout.vllm_sampler": "rlsgd.rollout.vllm.sampler",
    "rlsgd.rollout.vllm_server": "rlsgd.rollout.vllm.server",
    "rlsgd.rollout.vllm_transfer": "rlsgd.rollout.vllm.transfer",
    "rlsgd.rollout.vllm_worker": "rlsgd.rollout.vllm.worker",
    "rlsgd.rewards.sandbox_confine": "rlsgd.rewards.sandbox.confine",
    "rlsgd.rewards.sandbox_container": "rlsgd.rewards.sandbox.container",
    "rlsgd.rewards.sandbox_filter": "rlsgd.rewards.sandbox.filter",
    "rlsgd.rewards.sandbox_inside": "rlsgd.rewards.sandbox.inside",
    "rlsgd.rewards.sandbox_landlock": "rlsgd.rewards.sandbox.landlock",
    "rlsgd.rewards.sandbox_session": "rlsgd.rewards.sandbox.session",
    "rlsgd.evaluation": "rlsgd.algorithms.evaluation",
    "rlsgd.training_cli": "rlsgd.cli.training",
    "rlsgd.delta_command": "rlsgd.deltas.command",
    "rlsgd.data_command": "rlsgd.preparation.command",
    "rlsgd.provenance": "rlsgd.study.provenance",
    "rlsgd.html_report": "rlsgd.report",
}


class RenamedModules(MetaPathFinder, Loader):
    """Finds a module by the name that it had before, and says the name that it has now."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an old name; None for every other."""
        return ModuleSpec(fullname, self) if fullname in RENAMED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module of today, which the import system puts under its old name as well."""
        new = RENAMED[spec.name]
        warnings.warn(
            f"{spec.name} is now {new}; the old name goes with 0.3", FutureWarning, stacklevel=2
        )
        module = import_module(new)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the module has run under its name of today, whose spec it keeps."""
        module.__spec__ = self.spec


def moved_names(package: str, module: str, names: str) -> Callable[[str], Any]:
    """`__getattr__` of a package that was a module: finds its old names in `module`, and warns.

    Args:
        package: Import path of the package.
        module: Import path of the module that holds the names now.
        names: The old names, separated by spaces.
    """
    old = set(names.split())

    def get(name: str) -> Any:
        if name not in old:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warnings.warn(
            f"{package}.{name} is now {module}.{name}; the old name goes with 0.3",
            FutureWarning,
            stacklevel=2,
        )
        return getattr(import_module(module), name)

    return get


def install() -> None:
    """Let old names be found, once in a process."""
    if not any(type(finder).__name__ == RenamedModules.__name__ for finder in sys.meta_path):
        sys.meta_path.append(RenamedModules())
