"""Supervised fine-tuning: the contrast to RL, with the same optimizers and callbacks."""

from __future__ import annotations

from torch import Tensor

from rlsgd.algorithms.verifiable import VerifiableModule
from rlsgd.distributed import global_sum
from rlsgd.functional.masked import aggregate, aggregation_count
from rlsgd.models import completion_logprobs
from rlsgd.types import Rollouts


class SFT(VerifiableModule):
    """Cross-entropy of the completion tokens, averaged over all of them on all ranks.

    A batch's denominator is its own token count, so accumulated batches weigh the same whatever
    their lengths; `--trainer.accumulate_grad_batches 1` gives a pure token mean.
    """

    def training_step(self, batch: Rollouts, batch_idx: int) -> Tensor:
        logprobs, _ = completion_logprobs(self.policy, batch, temperature=1.0)
        denominator = global_sum(aggregation_count(batch.completion_mask, "token-mean"))
        loss = aggregate(
            -logprobs, batch.completion_mask, mode="token-mean", denominator=denominator
        )
        loss = loss * self.trainer.world_size  # the strategy averages over ranks
        self.require_finite_loss(loss)
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, sync_dist=True)
        return loss
