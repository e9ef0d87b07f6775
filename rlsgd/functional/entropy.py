"""Which tokens are the uncertain ones: the forking tokens of arXiv:2506.01939."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def validate_top_entropy(fraction: float) -> None:
    """Raise ValueError unless the fraction is in (0, 1]."""
    if not 0 < fraction <= 1:
        raise ValueError(
            f"top_entropy_fraction must be above 0 and at most 1, for all tokens (got {fraction})"
        )


def top_entropy_threshold(entropy: Tensor, fraction: float) -> Tensor:
    """The entropy that the top `fraction` of the tokens reaches (arXiv:2506.01939).

    Args:
        entropy: [N] of every token that the share is of: a whole rollout, on all ranks.
        fraction: in (0, 1]; rounded up to a whole number of tokens.

    Returns:
        [] the smallest entropy among them. Tokens that equal it all count as top.
    """
    validate_top_entropy(fraction)
    # The slack is the rounding of the product: 0.2 of 15 tokens must be 3, not 4.
    count = max(1, math.ceil(fraction * len(entropy) * (1 - 1e-12)))
    return torch.topk(entropy, count, sorted=False).values.min()
