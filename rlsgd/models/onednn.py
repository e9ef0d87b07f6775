"""Products of linear layers on a CPU by oneDNN, where torch takes its BLAS.

In float32 torch has linear layers computed by the BLAS it was built with, MKL as a rule. On AMD's
processors oneDNN, which torch brings as well, is faster: see docs/performance.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from rlsgd.core.types import TokenBatch
from rlsgd.models.comparing import plain_scores
from rlsgd.models.fast_paths import fast_path

ONEDNN = "computing linear layers by oneDNN"


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of a model compute by oneDNN in float32 on a CPU.

    Everywhere else, and under autocast, they stay as they are. Results differ by rounding.

    Raises:
        ValueError: this torch has no oneDNN.
    """
    if not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        raise ValueError("--model.onednn true: this build of torch has no oneDNN; set it to false")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            forward: Any = partial(_forward, module)
            module.forward = forward


def uses_onednn(model: nn.Module) -> bool:
    """Whether `use_onednn` was called on the model."""
    return any(_is_ours(module) for module in model.modules())


def _is_ours(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return isinstance(forward, partial) and forward.func is _forward


@fast_path(ONEDNN, train_mode=False)
def _scores(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    return plain_scores(model, batch)


def _forward(module: nn.Linear, inputs: Tensor) -> Tensor:
    weight, bias = module.weight, module.bias
    is_plain = inputs.dtype == weight.dtype == torch.float32 and inputs.device.type == "cpu"
    if not is_plain or torch.is_autocast_enabled("cpu") or not inputs.numel():
        return linear(inputs, weight, bias)
    return _Linear.apply(inputs, weight, bias)  # pyright: ignore[reportReturnType]


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [.., K] times the transpose of right [N, K], plus bias [N]."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, weight = ctx.saved_tensors
        for_inputs, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.t()) if for_inputs else None,
            # a product over the tokens, in which MKL is as fast
            rows.t() @ inputs.flatten(0, -2) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )
