"""The share of weights that an update leaves unchanged in bfloat16, from its size alone.

A weight on a bfloat16 number changes its view if it moves by more than half an ulp, one at a random
place between two numbers with probability min(1, |move| / ulp). If the N weights of an update of
length D move like N(0, D^2 / N), the shares follow from the weights before and D. Where it is known
how far each moves, as from a pilot's update times a factor, they follow from that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlsgd.functional.updates import CHUNK
from rlsgd.functional.visibility import half_ulp_bf16


def unchanged_on_grid(ulp: Tensor, size: Tensor) -> Tensor:
    """Probability that a weight on a bfloat16 number keeps its view under a move N(0, size^2).

    That of |move| <= ulp / 2.

    Args:
        ulp: distance of bfloat16 numbers at the weight, any shape.
        size: standard deviation of the move, broadcastable, above 0.
    """
    return torch.erf(ulp / (2 * math.sqrt(2) * size))


def unchanged_off_grid(ulp: Tensor, size: Tensor) -> Tensor:
    """The same of a weight at a random place between two numbers: E max(0, 1 - |move| / ulp).

    With a = ulp / size that is erf(a / sqrt(2)) - sqrt(2 / pi) (1 - exp(-a^2 / 2)) / a.
    """
    ratio = ulp / size
    lost = math.sqrt(2 / math.pi) * -torch.expm1(-ratio.square() / 2) / ratio
    return torch.erf(ratio / math.sqrt(2)) - lost


def expected_unchanged(weight: Tensor, size: float) -> Tensor:
    """How many entries of a tensor to expect unchanged in bfloat16, [] float64, if all move alike.

    Each entry is taken by the law of where it lies, on a bfloat16 number or between two.

    Args:
        weight: before, any shape and floating dtype, finite.
        size: standard deviation of the moves; 0 moves nothing.
    """
    if not size:
        return torch.tensor(float(weight.numel()), dtype=torch.float64)
    sizes = torch.tensor(size, dtype=torch.float64, device=weight.device)
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for part in weight.reshape(-1).split(CHUNK):
        ulp, on_grid = _place(part.float())
        total += torch.where(
            on_grid, unchanged_on_grid(ulp, sizes), unchanged_off_grid(ulp, sizes)
        ).sum()
    return total


def unchanged_after(weight: Tensor, distance: Tensor) -> Tensor:
    """The same where each entry's move is known but for its direction, [] float64.

    Args:
        weight: before, any shape and floating dtype, finite.
        distance: same shape, |move|.
    """
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    pairs = zip(weight.reshape(-1).split(CHUNK), distance.reshape(-1).split(CHUNK), strict=True)
    for part, moved in pairs:
        ulp, on_grid = _place(part.float())
        far = moved.double() / ulp
        total += torch.where(on_grid, (far <= 0.5).double(), (1 - far).clamp(min=0)).sum()
    return total


def _place(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of bfloat16 numbers at each weight, and whether it is one."""
    return 2 * half_ulp_bf16(weight), weight == weight.bfloat16().float()


def within_tolerance(tolerance: float, size: float) -> float:
    """Probability that a move N(0, size^2) is at most `tolerance` long."""
    return math.erf(tolerance / (math.sqrt(2) * size)) if size else 1.0
