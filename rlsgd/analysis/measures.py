"""What `rlsgd analyze` measures, and with which constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlsgd.functional.tolerances import TOLERANCES


@dataclass(frozen=True)
class Measures:
    """What is measured, and with which constants.

    Args:
        tolerances: absolute; the share of weights within each is counted.
        rank_k: rank of the subspaces, of the principal mask and of the leading energy.
        alpha: share of a matrix's entries in the principal and in the low-magnitude mask.
        spectra: also measure what needs singular values.

    Raises:
        ValueError: one of them is out of its range.
    """

    tolerances: Sequence[float] = TOLERANCES
    rank_k: int = 32
    alpha: float = 0.3
    spectra: bool = True

    def __post_init__(self) -> None:
        for tolerance in self.tolerances:
            if not 0 <= tolerance < math.inf:
                raise ValueError(
                    f"--tolerances {tolerance:g}: a tolerance is 0 or more, in units of the weight"
                )
        if self.rank_k < 1:
            raise ValueError(f"--rank-k {self.rank_k}: must be at least 1")
        if not 0 < self.alpha < 1:
            raise ValueError(f"--alpha {self.alpha:g}: must be above 0 and below 1")
