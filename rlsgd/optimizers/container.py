"""OptimizerContainer: several optimizers that step as one, each with its own class and settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlsgd.optimizers.protocol import StepsInBackward


class OptimizerContainer(Optimizer):
    """One optimizer to Lightning, to a scheduler and to a checkpoint; several underneath.

    Automatic optimization and `global_step` then count one step, whatever is inside. `param_groups`
    are the optimizers' own groups in order, so a scheduler that scales learning rates (cosine,
    linear, lambda) keeps their proportion; one that sets them takes a list, a rate for each group.
    The state dict has torch's format, parameters numbered through all groups.

    Args:
        optimizers: optimizers, at least one, over different parameters.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        for inner in self.optimizers:
            if isinstance(inner, StepsInBackward):  # it steps inside the closure
                raise ValueError(
                    f"--model.optimizer {type(inner).__name__}: it steps inside the backward pass, "
                    "so it cannot be one of several optimizers; choose another"
                )
        super().__init__([group for inner in self.optimizers for group in inner.param_groups], {})

    @property
    def state(self) -> JointState:
        """State of every parameter; what is assigned to it reaches the optimizer that keeps it."""
        return JointState(self.optimizers)

    @state.setter
    def state(self, value: Any) -> None:
        assert not value, "the state is that of the optimizers inside"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only for the groups of the optimizers inside, while they are put together."""
        if not any(param_group is own for inner in self.optimizers for own in inner.param_groups):
            raise ValueError("add the group to one of the container's optimizers before making it")
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Evaluate the closure once, then step every optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner in self.optimizers:
            inner.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for inner in self.optimizers:
            inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """`state` and `param_groups` joined; further entries of an optimizer under its number."""
        joined: dict[str, Any] = {"state": {}, "param_groups": []}
        offset = 0
        for number, inner in enumerate(self.optimizers):
            part = inner.state_dict()
            joined["state"] |= {offset + i: state for i, state in part["state"].items()}
            joined["param_groups"] += [
                {**group, "params": [offset + i for i in group["params"]]}
                for group in part["param_groups"]
            ]
            for key in part.keys() - {"state", "param_groups"}:
                joined[f"{number}.{key}"] = part[key]
            offset += num_parameters(inner)
        return joined

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give every optimizer its part.

        Raises:
            ValueError: the groups are not those of these optimizers.
        """
        groups = state_dict["param_groups"]
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"the checkpoint holds {len(groups)} parameter groups and this run has "
                f"{len(self.param_groups)}: it was written with other optimizers"
            )
        offset, first = 0, 0
        for number, inner in enumerate(self.optimizers):
            own = groups[first : first + len(inner.param_groups)]
            end = offset + num_parameters(inner)
            mark = f"{number}."
            part = {k.removeprefix(mark): v for k, v in state_dict.items() if k.startswith(mark)}
            states = state_dict["state"].items()
            part |= {
                "state": {i - offset: state for i, state in states if offset <= i < end},
                "param_groups": [{**g, "params": [i - offset for i in g["params"]]} for g in own],
            }
            inner.load_state_dict(part)
            offset, first = end, first + len(own)
        # torch's load_state_dict replaces the groups, which are shared with this object
        self.param_groups = [group for inner in self.optimizers for group in inner.param_groups]


class JointState(dict[Tensor, Any]):
    """The states of several optimizers by parameter; assignment goes through to the owner's."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        super().__init__((p, state) for inner in optimizers for p, state in inner.state.items())
        self.optimizers = optimizers

    def __setitem__(self, parameter: Tensor, state: Any) -> None:
        super().__setitem__(parameter, state)
        for inner in self.optimizers:
            if any(parameter is own for group in inner.param_groups for own in group["params"]):
                inner.state[parameter] = state


def num_parameters(optimizer: Optimizer) -> int:
    """Parameters (tensors) in all groups of an optimizer."""
    return sum(len(group["params"]) for group in optimizer.param_groups)
