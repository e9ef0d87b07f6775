"""Calling any causal language model of transformers with the arguments that it has."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
"""Names of the argument for transformers' `Cache`: the newest first, state-space models' last."""


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the forward of the model's class names this argument."""
    return argument in inspect.signature(type(model).forward).parameters


def accepted(model: nn.Module, **inputs: Any) -> dict[str, Any]:
    """The arguments that the model's class names.

    Bloom counts positions from the mask, Mamba has neither positions nor keys: what a model leaves
    out may change its numbers, which `rlsgd.models.fast_paths` finds out.
    """
    named = inspect.signature(type(model).forward).parameters
    return {name: value for name, value in inputs.items() if name in named}


def call(model: nn.Module, **inputs: Any) -> Any:
    """The model's output for those of the arguments that its class names."""
    return model(**accepted(model, **inputs))


def cache_argument(model: nn.Module) -> str | None:
    """The name under which the model takes a `Cache`; none if it takes none."""
    return next((name for name in CACHE_ARGUMENTS if accepts(model, name)), None)


def class_name(model: nn.Module) -> str:
    """The model's class, for a message; sharding puts FSDP before it."""
    return type(model).__name__.removeprefix("FSDP")
