"""What supervised fine-tuning and pre-training share: the cross-entropy of tokens on record."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.algorithms.base import PolicyModule
from rlsgd.core.types import Rollouts
from rlsgd.functional.masked import aggregate
from rlsgd.models.scoring import completion_logprobs


def cross_entropy_loss(module: PolicyModule, batch: Rollouts) -> Tensor:
    """The loss [] to go backward from, and its value in the log as `loss`.

    It is this batch's share of the mean over all tokens of the optimizer step: the batch's
    denominator is the number of them on all ranks and in all accumulated batches.
    """
    assert batch.denominator is not None
    logprobs, _ = completion_logprobs(module.policy, batch, temperature=1.0)
    share = aggregate(
        -logprobs, batch.completion_mask, mode="token-mean", denominator=batch.denominator
    )
    module.require_finite_loss(share)
    module.log_share("loss", share)
    return module.scale_for_backward(share)


@torch.no_grad()
def check_document_isolation(policy: PreTrainedModel, *, flag: str) -> None:
    """Refuse a model that does not keep the documents of a row apart.

    The second of two documents must have the logits that it has alone, to a tolerance far above
    rounding and far below the effect of another token.

    Args:
        policy: asked for 12 columns of logits.
        flag: what asked for several documents in a row; begins the message.

    Raises:
        ValueError: its attention or its positions go on from one document to the next.
    """
    embedding: Any = policy.get_input_embeddings()
    tokens = torch.arange(8, device=policy.device).remainder(embedding.num_embeddings)[None]
    positions = torch.arange(4, device=policy.device)[None]
    packed = policy(tokens, position_ids=positions.repeat(1, 2), use_cache=False).logits[:, 4:]
    alone = policy(tokens[:, 4:], position_ids=positions, use_cache=False).logits
    error = (packed - alone).abs().max() / alone.abs().max()
    if not error <= torch.finfo(alone.dtype).eps ** 0.5:
        raise ValueError(
            f"{flag}: in {type(policy).__name__} a document sees the one before it in its row (the "
            f"logits differ by {float(error):.2g} of the largest), so they cannot be kept apart"
        )
