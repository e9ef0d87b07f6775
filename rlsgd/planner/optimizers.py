"""What an optimizer keeps of each weight, found by a step, and what a step needs meanwhile."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlsgd.planner.architecture import Architecture, Weight

# Small parameters of every kind that an optimizer may treat apart: shape and roles.
PROBES = {
    "embedding": Weight((6, 4), roles=frozenset({"embedding"})),
    "head": Weight((6, 4), roles=frozenset({"head"})),
    "matrix": Weight((4, 3), layer=0),
    "vector": Weight((4,), layer=0),
}
Sizes = list[tuple[Weight, int]]  # each weight, with its entries on this rank


@dataclass(frozen=True)
class StateSize:
    """State of one parameter.

    Args:
        per_entry: bytes for each entry of the weight.
        fixed: bytes besides, for example of a step counter.
    """

    per_entry: int
    fixed: int


@dataclass(frozen=True)
class OptimizerSize:
    """Memory of an optimizer for weights of one dtype.

    Args:
        name: as the user wrote it.
        class_name: of the optimizer's class.
        item: bytes of an entry of a weight.
        states: for each kind of `PROBES`.
        fused: it applies and frees each gradient inside the backward pass.
    """

    name: str
    class_name: str
    item: int
    states: dict[str, StateSize]
    fused: bool

    @property
    def has_known_workspace(self) -> bool:
        return self.class_name in WORKSPACES

    def state_bytes(self, model: Architecture, shards: int = 1) -> int:
        """Over all weights, bytes per entry x entries on this rank + what each has besides."""
        sizes = [(self.states[kind_of(weight)], weight) for weight in model.weights]
        return sum(s.per_entry * weight.shard(shards) + s.fixed for s, weight in sizes)

    def gradient_bytes(self, model: Architecture, shards: int = 1) -> int:
        """Of all weights; of the largest alone where each is freed at once."""
        sizes = [self.item * weight.shard(shards) for weight in model.weights]
        return max(sizes) if self.fused else sum(sizes)

    def workspace_bytes(self, model: Architecture, shards: int, *, one_by_one: bool) -> int:
        """What exists during a step alone; 0 where `has_known_workspace` is false.

        Args:
            model: its weights.
            shards: ranks that share them.
            one_by_one: parameters step one after the other, as torch does on a CPU, instead of all
                together (`foreach`), as on a GPU.
        """
        if not self.has_known_workspace:
            return 0
        sizes = [(weight, weight.shard(shards)) for weight in model.weights]
        return self.item * WORKSPACES[self.class_name](sizes, one_by_one)


def kind_of(weight: Weight) -> str:
    if "head" in weight.roles:
        return "head"
    if "embedding" in weight.roles:
        return "embedding"
    return "matrix" if weight.is_layer_matrix else "vector"


def measure_optimizer(spec: str, item: int) -> OptimizerSize:
    """Take one step of the optimizer on small parameters and look at what it keeps.

    So any optimizer is counted whatever its arguments: momentum, amsgrad, states in 8 bits.

    Args:
        spec: a class path, a name in torch.optim or rlsgd.optimizers, or a JSON object with
            class_path and init_args, as in a config.
        item: bytes of an entry of a weight: 4 for float32, 2 for bfloat16.

    Raises:
        ValueError: there is no such class, or it cannot be made or stepped.
    """
    import torch
    from torch import nn

    kind, arguments = class_and_arguments(spec)
    dtype = torch.float32 if item == 4 else torch.bfloat16
    try:
        probes = {
            name: nn.Parameter(torch.ones(w.shape, dtype=dtype)) for name, w in PROBES.items()
        }
        for name, parameter in probes.items():
            if PROBES[name].roles:
                parameter.rlsgd_roles = PROBES[name].roles  # pyright: ignore  # as `mark_roles` does
        optimizer = kind(list(probes.values()), **{"lr": 1e-3, **arguments})

        def closure() -> Any:
            optimizer.zero_grad()
            loss = torch.stack([p.float().square().sum() for p in probes.values()]).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"--optimizer {spec}: {kind.__name__} cannot be used: {error}") from error
    states = {}
    for name, parameter in probes.items():
        kept = [v for v in optimizer.state[parameter].values() if isinstance(v, torch.Tensor)]
        shaped = [v for v in kept if v.shape == parameter.shape]
        fixed = sum(v.nbytes for v in kept) - sum(v.nbytes for v in shaped)
        states[name] = StateSize(sum(v.element_size() for v in shaped), fixed)
    fused = all(p.grad is None for p in probes.values())
    return OptimizerSize(spec, kind.__name__, item, states, fused)


def class_and_arguments(spec: str) -> tuple[Any, dict[str, Any]]:
    """The class that `spec` names, see `measure_optimizer`, and the arguments it gives.

    Raises:
        ValueError: there is no such class, or this is no JSON object of a class.
    """
    path, arguments = spec, {}
    if spec.lstrip().startswith("{"):
        try:
            given = json.loads(spec)
            path, arguments = given["class_path"], dict(given.get("init_args") or {})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"--optimizer {spec}: not a JSON object with class_path and init_args: {error!r}"
            ) from error
    module, _, name = path.rpartition(".")
    for place in [module] if module else ["torch.optim", "rlsgd.optimizers"]:
        try:
            return getattr(importlib.import_module(place), name), arguments
        except (ImportError, AttributeError):
            continue
    raise ValueError(
        f"--optimizer {path}: no such class; write a class path such as torch.optim.AdamW, or a "
        "name in torch.optim or rlsgd.optimizers"
    )


# ---- what a step needs meanwhile, in entries of the weights' dtype


def _nothing(sizes: Sizes, one_by_one: bool) -> int:
    return 0


def _largest(sizes: Sizes, one_by_one: bool) -> int:
    """A new tensor for each weight in turn: signs."""
    return max((entries for _, entries in sizes), default=0)


def _roots(sizes: Sizes, one_by_one: bool) -> int:
    """Roots of the second moments, of all weights in one list or of each in turn."""
    return _largest(sizes, True) if one_by_one else sum(entries for _, entries in sizes)


def _adam(sizes: Sizes, one_by_one: bool) -> int:
    """As `_roots`; one by one, the root and the root over its bias correction."""
    return (1 + one_by_one) * _roots(sizes, one_by_one)


def _head(sizes: Sizes, one_by_one: bool) -> int:
    """The head's direction with clipped rows."""
    return sum(entries for weight, entries in sizes if "head" in weight.roles)


def _muon(sizes: Sizes, one_by_one: bool) -> int:
    """The larger of two steps, one after the other: Muon's of the largest matrix, AdamW's.

    Muon's: the averaged gradient in the weight's dtype, and bfloat16 matrices of the iteration (old
    and new factor, Gram matrix and its polynomial, at most as large), counted as two of float32.
    """
    matrices = [size for size in sizes if size[0].is_layer_matrix]
    others = [size for size in sizes if not size[0].is_layer_matrix]
    return max(_adam(others, one_by_one), 3 * _largest(matrices, one_by_one))


# by the name of the class
WORKSPACES: dict[str, Callable[[Sizes, bool], int]] = {
    "SGD": _nothing,
    "FusedBackwardSGD": _nothing,
    "SignSGD": _largest,
    "SGDLL": _head,
    "RMSprop": _roots,
    "Adam": _adam,
    "AdamW": _adam,
    "MuonWithAdamW": _muon,
}
