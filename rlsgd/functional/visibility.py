"""Which updates can be seen once the weights are rounded to bfloat16, and which rounding absorbs.

bfloat16 has 8 binary digits. In the binade 2^e <= |w| < 2^(e+1) its numbers are an ulp of 2^(e-7)
apart, and 2^-133 below 2^-126, where they are subnormal. Rounding goes to the nearest number, so a
weight that is itself a bfloat16 number keeps its view while |dw| < ulp / 2. The one exception: a
power of two moves into the binade below when it shrinks, and is seen to from ulp / 4 on. A weight
between two bfloat16 numbers, as float32 masters are, may be seen to move by less, or not by more.
So what is seen is counted by rounding, and half an ulp is the scale that updates are held against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlsgd.functional.dynamics import Distribution, distribution
from rlsgd.functional.updates import CHUNK

FLOAT32_BIAS, FLOAT64_BIAS = 127, 1023


def half_ulp_bf16(weight: Tensor) -> Tensor:
    """Half the distance of bfloat16 numbers in the binade of each weight: 2^(e-8), at least 2^-134.

    Args:
        weight: any shape; taken as float32.

    Returns:
        Same shape, float64 (exact). 0 counts as subnormal; not a number where the weight is
        infinite or none.
    """
    bits = weight.float().contiguous().view(torch.int32)
    biased = (bits >> 23) & 0xFF  # 0 is subnormal, 255 is infinite or not a number
    exponent = biased.clamp(min=1).long() - FLOAT32_BIAS - 8
    half_ulp = ((exponent + FLOAT64_BIAS) << 52).view(torch.float64)  # 2^exponent, exactly
    return torch.where(biased == 0xFF, torch.nan, half_ulp)


@dataclass(frozen=True)
class Visibility:
    """What a move of some weights amounts to in bfloat16. Several add up; `Visibility()` is 0.

    Args:
        numel: weights.
        unmoved: exactly where they were, in float32.
        absorbed: moved, but the same number in bfloat16.
        changed: another number in bfloat16.
        below_half_ulp: moved, by less than half an ulp of the weight before.
        squared: sum of the squared moves, in float64.
        ratio: |dw| over half an ulp of the weight before, 0 for those that did not move.
    """

    numel: int = 0
    unmoved: int = 0
    absorbed: int = 0
    changed: int = 0
    below_half_ulp: int = 0
    squared: float = 0.0
    ratio: Distribution = field(default_factory=Distribution)

    def __add__(self, other: Visibility) -> Visibility:
        return Visibility(
            self.numel + other.numel,
            self.unmoved + other.unmoved,
            self.absorbed + other.absorbed,
            self.changed + other.changed,
            self.below_half_ulp + other.below_half_ulp,
            self.squared + other.squared,
            self.ratio + other.ratio,
        )

    @property
    def length(self) -> float:
        """||dw||_2 of all weights together."""
        return math.sqrt(self.squared)

    def fractions(self) -> dict[str, float]:
        """`changed_bf16`, `absorbed`, `unmoved` (they sum to 1) and `below_half_ulp`."""
        counts = {
            "changed_bf16": self.changed,
            "absorbed": self.absorbed,
            "unmoved": self.unmoved,
            "below_half_ulp": self.below_half_ulp,
        }
        return {name: count / self.numel for name, count in counts.items()}


def visibility(weight: Tensor, before: Tensor) -> Visibility:
    """Compare the weights of one tensor with what they were.

    Args:
        weight: any shape and floating dtype, finite.
        before: same shape and dtype.
    """
    pairs = zip(weight.reshape(-1).split(CHUNK), before.reshape(-1).split(CHUNK), strict=True)
    return sum((_visibility(w.float(), b.float()) for w, b in pairs), Visibility())


def _visibility(weight: Tensor, before: Tensor) -> Visibility:
    moved = weight != before
    seen = weight.bfloat16() != before.bfloat16()
    distance = (weight.double() - before.double()).abs()
    half_ulp = half_ulp_bf16(before)
    return Visibility(
        numel=weight.numel(),
        unmoved=int((~moved).sum()),
        absorbed=int((moved & ~seen).sum()),
        changed=int(seen.sum()),
        below_half_ulp=int((moved & (distance < half_ulp)).sum()),
        squared=float(distance.square().sum()),
        ratio=distribution(distance / half_ulp),
    )


@dataclass
class PathLength:
    """The way a model takes, as lengths of its parts, to hold against where it arrives.

    Args:
        length: sum of ||dw||, what the displacement would be if all parts pointed the same way.
        squares: sum of ||dw||^2; its root is the displacement to expect of a random walk.
    """

    length: float = 0.0
    squares: float = 0.0

    def add(self, length: float) -> None:
        self.length += length
        self.squares += length**2

    def summary(self, displacement: float) -> dict[str, float]:
        """Both lengths, and the displacement ||w - w0|| over each where it is not 0."""
        walk = math.sqrt(self.squares)
        values = {"path_length": self.length, "random_walk_length": walk}
        if self.length:
            values["coherence"] = displacement / self.length
            values["displacement_over_random_walk"] = displacement / walk
        return values
