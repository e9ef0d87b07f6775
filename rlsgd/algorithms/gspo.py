"""GSPO: group sequence policy optimization (arXiv:2507.18071).

Differs from GRPO in its ratio, one for each completion: the geometric mean of the token ratios.
So clipping takes or leaves whole completions, and the bounds are tighter by orders of magnitude.
No difference from the paper (eq. 5). With one update from each rollout every ratio is 1, and GSPO
is GRPO with `--model.aggregation seq-mean-token-mean`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from rlsgd.algorithms.grpo import GRPO
from rlsgd.functional.aggregation import Aggregation
from rlsgd.functional.losses import sequence_ratio


class GSPO(GRPO):
    """GRPO with the length-normalized ratio of whole completions.

    The ratio stands at each token of its completion, so `seq-mean-token-mean` is the paper's mean
    over completions.

    Args:
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        aggregation: how per-token losses become one number; see RLModule.
    """

    sequence_level: ClassVar[bool] = True

    def __init__(
        self,
        clip_low: float = 3e-4,
        clip_high: float = 4e-4,
        aggregation: Aggregation = "seq-mean-token-mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, aggregation=aggregation, **kwargs)

    def ratio(self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
        return sequence_ratio(logprobs, old_logprobs, mask, length_normalized=True)
