"""TokenizedDataModule: what prompts, solutions and texts share: a tokenizer, and ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Protocol, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler
from transformers import PreTrainedTokenizerBase

from rlsgd.core.made_with import remembers_arguments
from rlsgd.core.types import SupervisedBatch
from rlsgd.models.loading import load_tokenizer

Item = TypeVar("Item")


@remembers_arguments
class TokenizedDataModule(LightningDataModule):
    """Data that the policy's tokenizer turns into tokens, shared out among the ranks.

    Args:
        tokenizer: path of the model whose tokenizer is used.
        seed: seed of the training data.
    """

    positive_flags: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tokenizer: str, seed: int = 0) -> None:
        super().__init__()
        self.tokenizer_path = tokenizer
        self.seed = seed

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of `tokenizer_path`."""
        return load_tokenizer(self.tokenizer_path)

    @property
    def rank(self) -> int:
        """This process's number; 0 without a trainer."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world_size(self) -> int:
        """The number of processes; 1 without a trainer."""
        return self.trainer.world_size if self.trainer else 1

    @property
    def accumulate(self) -> int:
        """Batches that make up one optimizer step; 1 without a trainer."""
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def _check_positive(self) -> None:
        for flag in self.positive_flags:
            if getattr(self, flag) < 1:
                raise ValueError(f"--data.{flag} must be at least 1; got {getattr(self, flag)}")

    def _share(self, count: int, world_size: int, *, flag: str) -> int:
        if count % world_size:
            raise ValueError(
                f"--data.{flag} {count} cannot be divided among {world_size} ranks; make it a "
                f"multiple of {world_size}"
            )
        return count // world_size


class SupervisedData(Protocol):
    """Data whose batches are known before they are trained on."""

    batches_per_epoch: int
    trainer: Any
    rank: int
    world_size: int
    accumulate: int

    def batches(
        self, epoch: int, *, rank: int, world_size: int, accumulate: int
    ) -> Iterator[SupervisedBatch]: ...


class SupervisedLoader:
    """Sized iterable over this rank's batches of the trainer's present epoch.

    It has a length so that Lightning does not fetch a batch ahead of the epoch's end.
    """

    def __init__(self, data: Any) -> None:
        self.data: SupervisedData = data

    def __len__(self) -> int:
        return self.data.batches_per_epoch

    def __iter__(self) -> Iterator[SupervisedBatch]:
        data = self.data
        return data.batches(
            data.trainer.current_epoch,
            rank=data.rank,
            world_size=data.world_size,
            accumulate=data.accumulate,
        )


def check_accumulation(batches_per_epoch: int, accumulate: int) -> None:
    """Refuse an epoch that would end in the middle of an optimizer step.

    Raises:
        ValueError: names both numbers.
    """
    if batches_per_epoch % accumulate:
        raise ValueError(
            f"--trainer.accumulate_grad_batches {accumulate} does not divide the "
            f"{batches_per_epoch} batches of an epoch (--data.batches_per_epoch)"
        )


def batches_of_rank(
    items: list[Item], batch_size: int, rank: int, world_size: int
) -> list[list[Item]]:
    """This rank's share in batches: every item on one rank only, every rank as many batches.

    Sampling with a sharded policy needs all ranks in every batch, so a rank with one item less
    has a smaller batch, not fewer batches, and none is empty: where `batch_size` is 1, a rank may
    have one batch of 2 instead.
    """
    shares = _even_parts(items, world_size)
    smallest, largest = min(map(len, shares)), max(map(len, shares))
    return _even_parts(shares[rank], min(math.ceil(largest / batch_size), smallest))


def _even_parts(items: list[Item], number: int) -> list[list[Item]]:
    edges = [len(items) * part // number for part in range(number + 1)]
    return [items[start:end] for start, end in pairwise(edges)]


def evaluation_loader(
    batches: list[list[Item]], collate: Callable[[list[Item]], Any] = list
) -> DataLoader:
    """A loader of batches that are this rank's already.

    Lightning shards every loader whose sampler is not distributed, so this one has one of one rank.
    """
    sampler = DistributedSampler(batches, num_replicas=1, rank=0, shuffle=False)  # pyright: ignore[reportArgumentType]
    return DataLoader(batches, batch_size=None, sampler=sampler, collate_fn=collate)  # pyright: ignore[reportArgumentType]
