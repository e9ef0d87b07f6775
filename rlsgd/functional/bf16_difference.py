"""Which weights arXiv:2602.07729's authors count as unchanged, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

ISCLOSE_ATOL = float(torch.tensor(1e-5, dtype=torch.bfloat16))  # 1.00136e-5


def bf16_isclose(weight: Tensor, initial: Tensor) -> Tensor:
    """Entries that the measure of arXiv:2602.07729 counts as unchanged, bool of the same shape.

    As in the authors' earlier public code: both are loaded in bfloat16, their difference is taken
    in bfloat16, and `torch.isclose(difference, 0, atol=1e-5)` compares in bfloat16 too, where the
    tolerance is 1.00136e-5. A weight above 2^-9 = 0.002 has no bfloat16 neighbour as near as that,
    so for it this is equality in bfloat16; a smaller one may have moved by a few numbers.

    Args:
        weight: any shape and floating dtype, now.
        initial: same shape, at the start.
    """
    difference = weight.bfloat16() - initial.bfloat16()
    return difference.abs().float() <= ISCLOSE_ATOL
