"""Supervised fine-tuning: the contrast to RL, with the same optimizers and callbacks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlsgd.algorithms.cross_entropy import check_document_isolation, cross_entropy_loss
from rlsgd.algorithms.verifiable import VerifiableModule
from rlsgd.core.types import Rollouts


class SFT(VerifiableModule):
    """Cross-entropy of the answers' tokens, the mean over all of those of an optimizer step.

    The mean is over all ranks and all batches that are accumulated, so neither how a batch is
    split nor `--data.packing` changes the loss.
    """

    def on_train_start(self) -> None:
        super().on_train_start()
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if data is not None and data.packing:
            check_document_isolation(self.policy, flag="--data.packing true")

    def training_step(self, batch: Rollouts, batch_idx: int) -> Tensor:
        return cross_entropy_loss(self, batch)
