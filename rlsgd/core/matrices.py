"""The matrices among a model's weights: every expert is one, also where a tensor holds several."""

from __future__ import annotations

from torch import Tensor

from rlsgd.core.layer_kinds import kind_of


def holds_experts(name: str, tensor: Tensor) -> bool:
    """Whether a tensor [E, m, n] is the matrices of E experts, and not a convolution."""
    return tensor.ndim == 3 and min(tensor.shape[1:]) > 1 and kind_of(name) != "convolution"


def split_experts(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The tensor itself, or `name[e]` for each expert that it holds."""
    if not holds_experts(name, tensor):
        return [(name, tensor)]
    return [(f"{name}[{number}]", matrix) for number, matrix in enumerate(tensor)]
