"""Pre-training: the next token of plain text, with the same optimizers and callbacks as RL."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from rlsgd.algorithms.base import PolicyModule
from rlsgd.algorithms.cross_entropy import check_document_isolation, cross_entropy_loss
from rlsgd.callbacks.base import log_metrics
from rlsgd.core.types import SupervisedBatch
from rlsgd.data import TextDataModule
from rlsgd.functional.masked import masked_mean
from rlsgd.models.scoring import completion_logprobs


class NextToken(PolicyModule):
    """Cross-entropy of every token of a text, the mean over all of those of an optimizer step.

    The mean is over all ranks and all batches that are accumulated. Validation is the same mean
    over the held-out blocks, in float32 under mixed precision too: `val/loss` in nats a token,
    `val/perplexity` its exponential. `tokens_seen` counts the tokens trained on, over all ranks.
    `--model.random_weights true` starts from nothing.

    Args:
        lr_scheduler: any torch scheduler class, stepped after each optimizer step (not after each
            epoch, as in RL), such as `rlsgd.optimizers.schedulers.WarmupCosine`; none keeps the
            rate.
    """

    def __init__(self, lr_scheduler: LRSchedulerCallable | None = None, **kwargs: Any) -> None:
        super().__init__(lr_scheduler=lr_scheduler, **kwargs)
        self.eval_loss = MeanMetric()
        self.tokens_seen = 0

    def configure_model(self) -> None:
        super().configure_model()
        limit = getattr(self.policy.config.get_text_config(), "max_position_embeddings", None)
        length = self.text.sequence_length
        if limit is not None and length > limit:
            raise ValueError(
                f"--data.sequence_length {length} is more than the model's {limit} positions"
            )

    def configure_optimizers(self) -> Any:
        """One optimizer; its scheduler is stepped after each optimizer step."""
        configured = super().configure_optimizers()
        if self.lr_scheduler is not None:
            scheduler = configured["lr_scheduler"]
            configured["lr_scheduler"] = {"scheduler": scheduler, "interval": "step"}
        return configured

    @property
    def text(self) -> TextDataModule:
        """The data module."""
        return cast(Any, self.trainer).datamodule

    # ---- training

    def on_train_start(self) -> None:
        super().on_train_start()
        self.check_documents()

    def on_train_batch_start(self, batch: SupervisedBatch, batch_idx: int) -> None:
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # it counts all accumulated ones
            self.tokens_seen += int(batch.denominator)

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        return cross_entropy_loss(self, batch)

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        log_metrics(self.trainer, {"tokens_seen": self.tokens_seen})

    # ---- validation

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.check_documents()

    def validation_step(self, batch: SupervisedBatch, batch_idx: int) -> None:
        with torch.autocast(self.device.type, enabled=False):
            logprobs, _ = completion_logprobs(self.policy, batch, temperature=1.0)
        mask = batch.completion_mask
        self.eval_loss.update(masked_mean(-logprobs, mask), weight=mask.sum())

    def on_validation_epoch_end(self) -> None:
        """Log and reset; torchmetrics reduces over ranks."""
        loss = self.eval_loss.compute()
        self.eval_loss.reset()
        self.log("val/loss", loss, prog_bar=True, sync_dist=True)
        self.log("val/perplexity", loss.exp(), sync_dist=True)

    def check_documents(self) -> None:
        """Refuse a model that cannot keep documents apart where that is asked for."""
        if self.text.document_attention == "isolated":
            flag = "--data.document_attention isolated (stream would do)"
            check_document_isolation(self.policy, flag=flag)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["tokens_seen"] = self.tokens_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.tokens_seen = checkpoint["tokens_seen"]
