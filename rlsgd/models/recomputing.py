"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rlsgd.models.calling import class_name

RECOMPUTED = "recomputing activations"


def recompute_activations(model: PreTrainedModel | nn.Module) -> None:
    """Let a model of transformers recompute the activations of each layer while it trains.

    Raises:
        ValueError: its class cannot.
    """
    checkpointed: Any = model
    try:
        checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"--model.activation_checkpointing true: {class_name(model)}: {reason}; set it to false"
        ) from error


def recomputes(model: nn.Module) -> bool:
    """Whether activations are recomputed in train mode."""
    return bool(getattr(model, "is_gradient_checkpointing", False))
