"""The share of weights that an update leaves unchanged in bfloat16, from its size alone.

A weight on a bfloat16 number changes its view if it moves by more than half an ulp, one at a random
place between two numbers with probability min(1, |move| / ulp). If the N weights of an update of
length D move like N(0, D^2 / N), the shares follow from the weights before and D. Where some move
more than others by a known pattern (a pilot's update, say), each weight has a size of its own.
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
        size: standard deviation of the move, broadcastable; 0 leaves it unchanged.
    """
    return torch.erf(ulp / (2 * math.sqrt(2) * size))


def unchanged_off_grid(ulp: Tensor, size: Tensor) -> Tensor:
    """The same of a weight at a random place between two numbers: E max(0, 1 - |move| / ulp).

    With a = ulp / size that is erf(a / sqrt(2)) - sqrt(2 / pi) (1 - exp(-a^2 / 2)) / a.
    """
    ratio = ulp / size
    lost = math.sqrt(2 / math.pi) * -torch.expm1(-ratio.square() / 2) / ratio
    return torch.erf(ratio / math.sqrt(2)) - lost


def expected_unchanged(weight: Tensor, size: Tensor | float) -> Tensor:
    """How many entries of a tensor to expect unchanged in bfloat16, [] float64.

    Each entry is taken by the law of where it lies, on a bfloat16 number or between two.

    Args:
        weight: before, any shape and floating dtype, finite.
        size: standard deviation of the moves: one for all, or of the same shape.
    """
    sizes = torch.as_tensor(size, dtype=torch.float64, device=weight.device).expand(weight.shape)
    pairs = zip(weight.reshape(-1).split(CHUNK), sizes.reshape(-1).split(CHUNK), strict=True)
    return torch.stack([_expected(w.float(), s) for w, s in pairs]).sum()


def _expected(weight: Tensor, size: Tensor) -> Tensor:
    ulp = 2 * half_ulp_bf16(weight)
    on_grid = weight == weight.bfloat16().float()
    probability = torch.where(on_grid, unchanged_on_grid(ulp, size), unchanged_off_grid(ulp, size))
    return torch.where(size > 0, probability, 1.0).sum()


def within_tolerance(tolerance: float, size: float) -> float:
    """Probability that a move N(0, size^2) is at most `tolerance` long."""
    return math.erf(tolerance / (math.sqrt(2) * size)) if size else 1.0
