"""One tensor for the weights that an engine multiplies by at once: q, k, v, and gate, up.

Engines have such weights as one matrix. Where the trainer's parameters are rows of that very
matrix, trainer and engine can hold one copy of the model (docs/one-copy.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# as vLLM names them
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def fuse_weights(model: nn.Module) -> dict[str, Tensor]:
    """Make parameters that belong together views of one tensor; values stay what they are.

    Call it before an optimizer is made: the parameters are new objects. One group exists twice at
    a time.

    Args:
        model: with whole weights, on its device.

    Returns:
        Each tensor [rows of all, columns] by the name that the engine has for it.

    Raises:
        ValueError: parameters of a group are tied, trained in part, or not of one dtype and width.
    """
    fused: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parts in FUSED.items():
            layers = [getattr(module, part, None) for part in parts]
            if not all(isinstance(layer, nn.Linear) for layer in layers):
                continue
            for kind in ("weight", "bias"):
                old = [getattr(layer, kind) for layer in layers]
                if all(parameter is None for parameter in old):
                    continue
                place = f"{path}.{name}.{kind}".lstrip(".")
                alike = {
                    None if p is None else (p.dtype, p.shape[1:], p.requires_grad) for p in old
                }
                numbers = {id(parameter) for parameter in old}
                if len(alike) > 1 or seen & numbers or len(numbers) < len(old):
                    raise ValueError(f"{place}: its parts {', '.join(parts)} cannot be one tensor")
                whole = torch.cat([parameter.detach() for parameter in old])
                rows = whole.split([len(parameter) for parameter in old])
                for layer, view, parameter in zip(layers, rows, old, strict=True):
                    new = nn.Parameter(view, requires_grad=parameter.requires_grad)
                    setattr(layer, kind, new)
                    seen.add(id(new))
                fused[place] = whole
    return fused


def engine_tensors(model: nn.Module, fused: dict[str, Tensor]) -> dict[str, Tensor]:
    """All weights as an engine has them: fused ones, and every other parameter as it is.

    Args:
        model: its parameters.
        fused: as `fuse_weights` returned it.

    Returns:
        Tensors that share the model's memory, tied ones under their first name alone.
    """
    parts = {part for group in FUSED.values() for part in group}
    others = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parts.isdisjoint(name.split("."))
    }
    return others | fused
