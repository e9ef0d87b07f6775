"""Dr. GRPO: GRPO done right (arXiv:2503.20783).

Two defaults differ from GRPO, to remove its two biases: advantages are not divided by the group's
standard deviation, which would weigh easy and hard prompts more; and the token sum of a completion
is divided by the constant max_completion_tokens, not by its own length or that of the batch, which
would favour long wrong completions. No difference from the paper; it has no KL term either.
"""

from __future__ import annotations

from typing import Any

from rlsgd.algorithms.grpo import GRPO
from rlsgd.functional.aggregation import Aggregation


class DrGRPO(GRPO):
    """GRPO without the standard deviation and without length normalization.

    Args:
        scale_advantages: whether to divide each group's centred rewards by their standard
            deviation.
        aggregation: how per-token losses become one number; see RLModule.
    """

    def __init__(
        self,
        scale_advantages: bool = False,
        aggregation: Aggregation = "seq-mean-token-sum-norm",
        **kwargs: Any,
    ) -> None:
        super().__init__(scale_advantages=scale_advantages, aggregation=aggregation, **kwargs)
