"""Supervised fine-tuning: the contrast to RL, with the same optimizers and callbacks."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from rlsgd.algorithms.base import PolicyModule
from rlsgd.algorithms.checks import check_max_completion_tokens
from rlsgd.algorithms.cross_entropy import check_document_isolation, cross_entropy_loss
from rlsgd.algorithms.evaluation import Evaluator, evaluates_answers
from rlsgd.core.flags import flags
from rlsgd.core.types import SupervisedBatch
from rlsgd.data import SolutionDataModule
from rlsgd.rollout.sampler import HFSampler, Sampler


@evaluates_answers
class SFT(PolicyModule):
    """Cross-entropy of the answers' tokens, the mean over all of those of an optimizer step.

    The mean is over all ranks and all batches that are accumulated, so neither how a batch is
    split nor `--data.packing` changes the loss.

    Args:
        sampler: how completions are sampled; none means by the policy itself (HFSampler).
        max_completion_tokens: most tokens of a completion.
        eval_samples: completions of each problem that `rlsgd test` and `rlsgd validate` sample for
            avg@k, pass@k and the majority's answer; 0 for the greedy one alone, as during `fit`.
        eval_temperature: softmax temperature of those samples.
    """

    def __init__(
        self,
        sampler: Sampler | None = None,
        max_completion_tokens: int = 256,
        eval_samples: int = 0,
        eval_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sampler = sampler or HFSampler()
        with flags("--model."):
            check_max_completion_tokens(max_completion_tokens)
        self.max_completion_tokens = max_completion_tokens
        self.evaluator = Evaluator(eval_samples, eval_temperature)

    @property
    def task_data(self) -> SolutionDataModule:
        """The data module: the task's problems, and the scorer of their completions."""
        return cast(Any, self.trainer).datamodule

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.task_data.packing:
            check_document_isolation(self.policy, flag="--data.packing true")

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        return cross_entropy_loss(self, batch)
