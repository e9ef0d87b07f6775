"""ExperienceLoader: a rollout is the data of one Lightning epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer

from rlsgd.core.distributed import global_sum
from rlsgd.core.types import Rollouts


class ExperienceLoader:
    """Sized iterable: one `iter()` rolls out once with the current policy and yields microbatches.

    It has a length because Lightning prefetches from an unsized iterable, which would sample
    rollout n + 1 before update n. The order is inner epochs, then minibatches, then the
    `--trainer.accumulate_grad_batches` microbatches of each minibatch. Every microbatch carries the
    denominator of its whole minibatch over all ranks, so splitting changes no gradient.

    Args:
        data: a PromptDataModule: `prompts(epoch, rank=, world_size=)`, `group_size`.
        trainer: its `lightning_module` is an RLModule.
    """

    def __init__(self, data: Any, trainer: Trainer) -> None:
        self.data = data
        self.trainer = trainer
        self.module: Any = trainer.lightning_module
        check_sizes(self.module, data, trainer)

    def __len__(self) -> int:
        module = self.module
        return module.inner_epochs * module.minibatches * self.trainer.accumulate_grad_batches

    def __iter__(self) -> Iterator[Rollouts]:
        epoch, trainer = self.trainer.current_epoch, self.trainer
        prompts = self.data.prompts(epoch, rank=trainer.global_rank, world_size=trainer.world_size)
        rollouts = self.module.rollout(prompts, self.data.group_size)
        for inner_epoch in range(self.module.inner_epochs):
            for microbatches in self.module.minibatch_rows(rollouts, inner_epoch):
                counts = self.module.denominators(rollouts.select(torch.cat(microbatches)))
                denominator, num_tokens = map(global_sum, counts)
                for rows in microbatches:
                    microbatch = rollouts.select(rows).trim()
                    yield replace(microbatch, denominator=denominator, num_tokens=num_tokens)


def check_sizes(module: Any, data: Any, trainer: Trainer) -> None:
    """Refuse a group or minibatch size that cannot work; cheap, so it comes before any sampling.

    Raises:
        ValueError: names the flag and the numbers.
    """
    module.check_group_size(data.group_size)
    rows = data.prompts_per_epoch // trainer.world_size * data.group_size
    if rows % module.minibatches:
        raise ValueError(
            f"--model.minibatches {module.minibatches} does not divide the {rows} completions of "
            "each rank (--data.prompts_per_epoch x --data.group_size / ranks)"
        )
    if rows // module.minibatches < trainer.accumulate_grad_batches:
        raise ValueError(
            f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches} is more than "
            f"the {rows // module.minibatches} completions of a minibatch"
        )
