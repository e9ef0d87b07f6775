"""Scores of a batch without rows: no forward pass, and a gradient of 0 for every weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rlsgd.core.types import TokenBatch


def no_scores(model: PreTrainedModel, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropy [0, T] of no row.

    Backward gives every weight a gradient of 0, not none: optimizers pass over a weight without a
    gradient, while momentum and weight decay move one whose gradient is 0.
    """
    assert not len(batch)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    nothing: Tensor = _Nothing.apply(*trained)  # pyright: ignore[reportAssignmentType]
    nothing = nothing.expand(batch.input_ids.shape)
    return nothing, nothing.detach()


class _Nothing(torch.autograd.Function):
    """0 of all parameters."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(map(_zero_gradient, ctx.saved_tensors))


def _zero_gradient(parameter: Tensor) -> Tensor:
    """Zeros [shape of the parameter]; those of a plain one take memory when they are accumulated,
    one parameter after the other."""
    if isinstance(parameter, DTensor):
        return torch.zeros_like(parameter)
    return parameter.new_zeros(()).expand(parameter.shape)
