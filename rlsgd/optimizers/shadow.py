"""Where an optimizer would take the weights, without taking them there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def displacement(
    make: Callable[[Iterable[nn.Parameter]], Optimizer],
    parameters: dict[str, nn.Parameter],
    gradients: Iterable[dict[str, Tensor]],
    clip: Callable[[list[nn.Parameter]], Any] | None = None,
) -> dict[str, Tensor]:
    """D of an optimizer at rate 1: the sum of its steps for a sequence of gradients.

    Parameters start at 0, so that no digit of a small step is lost in a large weight, and weight
    decay, which is no matter of the gradients, is switched off. Rates of further groups keep their
    proportion to the first.

    Args:
        make: makes the optimizer of parameters, with any rate above 0.
        parameters: by name; their values are lost.
        gradients: of each step, by name; a missing one is no gradient.
        clip: clips the gradients in place, before each step.

    Raises:
        ValueError: the optimizer's rate is not above 0, so that its step at rate 1 is unknown.
    """
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
    optimizer = make(parameters.values())
    first = float(optimizer.param_groups[0]["lr"])
    if first <= 0:
        raise ValueError(f"{type(optimizer).__name__} has the rate {first:g}; set one above 0")
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] / first
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
    for step in gradients:
        for name, parameter in parameters.items():
            gradient = step.get(name)
            parameter.grad = None if gradient is None else gradient.clone()
        if clip is not None:
            clip(list(parameters.values()))
        optimizer.step()
    optimizer.zero_grad()
    if callable(switch := getattr(optimizer, "eval", None)):  # schedule-free: the average is meant
        switch()
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
