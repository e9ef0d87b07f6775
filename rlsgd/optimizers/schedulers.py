"""Learning-rate schedules that torch lacks as one class."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(
    step: int, *, warmup_steps: int, total_steps: int, final_fraction: float
) -> float:
    """Share of the peak rate at `step`, which counts from 0: the step about to be taken.

    It rises in equal parts, from 1 / warmup_steps at step 0 to 1 at the warmup's last step, then
    falls along half a cosine to `final_fraction` at step total_steps - 1, and stays there.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    peak = max(warmup_steps - 1, 0)
    progress = min((step - peak) / max(total_steps - 1 - peak, 1), 1.0)
    return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * progress)) / 2


class WarmupCosine(LambdaLR):
    """Linear warmup, then half a cosine down to a fraction of the peak: what pre-training uses.

    A resumed run goes by the numbers it is given, not by those of its checkpoint.

    Args:
        optimizer: its `lr` is the peak.
        total_steps: steps until the rate is lowest; it stays there. Optimizer steps with
            `NextToken`, epochs with the algorithms for RL.
        warmup_steps: steps of the warmup, contained in `total_steps`.
        final_fraction: lowest rate as a share of the peak (0.1 in arXiv:2605.17787's code).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        final_fraction: float = 0.1,
    ) -> None:
        flag = "--model.lr_scheduler.init_args"
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                f"{flag}.warmup_steps {warmup_steps} must be 0 or more, and less than the "
                f"{total_steps} of total_steps"
            )
        if not 0 <= final_fraction <= 1:
            raise ValueError(f"{flag}.final_fraction must be from 0 to 1; got {final_fraction}")

        def share(step: int) -> float:
            return warmup_cosine(
                step,
                warmup_steps=warmup_steps,
                total_steps=total_steps,
                final_fraction=final_fraction,
            )

        super().__init__(optimizer, share)
