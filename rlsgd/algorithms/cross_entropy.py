"""What supervised fine-tuning and pre-training share: the cross-entropy of tokens on record."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.algorithms.base import PolicyModule
from rlsgd.core.types import SupervisedBatch
from rlsgd.functional.aggregation import aggregate
from rlsgd.models.fast_paths import require
from rlsgd.models.scoring import DOCUMENTS, completion_logprobs


def cross_entropy_loss(module: PolicyModule, batch: SupervisedBatch) -> Tensor:
    """The loss [] to go backward from, and its value in the log as `loss`.

    It is this batch's share of the mean over all tokens of the optimizer step: the batch's
    denominator is the number of them on all ranks and in all accumulated batches.
    """
    logprobs, _ = completion_logprobs(module.policy, batch, temperature=1.0)
    share = aggregate(
        -logprobs, batch.completion_mask, mode="token-mean", denominator=batch.denominator
    )
    module.require_finite_loss(share)
    module.log_share("loss", share)
    return module.scale_for_backward(share)


def check_document_isolation(policy: PreTrainedModel, *, flag: str) -> None:
    """Refuse a model that does not keep the documents of a row apart.

    Args:
        policy: tried out on a row of several documents.
        flag: what asked for several documents in a row; begins the message.

    Raises:
        ValueError: its attention, states or positions go on from one document to the next.
    """
    fix = "a document sees the one before it in its row, so they cannot be kept apart"
    require(policy, DOCUMENTS, flag=flag, fix=fix)
