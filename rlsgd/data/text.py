"""TextDataModule: blocks of plain text of one length, for next-token pre-training."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rlsgd.core.distributed import derived_seed
from rlsgd.core.types import SupervisedBatch
from rlsgd.data.base import (
    SupervisedLoader,
    TokenizedDataModule,
    batches_of_rank,
    check_accumulation,
    evaluation_loader,
)
from rlsgd.data.packing import restarting_positions
from rlsgd.data.passes import rows_of_epoch
from rlsgd.data.tasks.base import check_fraction
from rlsgd.data.text_files import TxtUnit, read_documents

TEXTS_AT_ONCE = 1000  # given to the tokenizer


class TokenStream(NamedTuple):
    """Documents one after another, each with an end-of-sequence token: 5 bytes a token."""

    token_ids: Tensor  # [N] int32
    starts: Tensor  # [N] bool, True at a document's first token


class TextDataModule(TokenizedDataModule):
    """Text cut into blocks of `sequence_length` tokens, none of which is padding.

    Documents follow one another, each with an end-of-sequence token, and the stream is cut. A
    block begins with the last token of the one before, so that every token is predicted once in a
    pass. Passes over the blocks follow one another, each in another order; what does not fill a
    block is left out. Held-out documents are chosen by their text, so equal ones stay together.

    Args:
        path: a `.jsonl`, `.json`, `.parquet` or `.txt` file, a folder of such, or the name of a
            text prepared in the cache (`shakespeare`). All of it is kept in memory as tokens.
        tokenizer: path of the model whose tokenizer is used.
        text_column: column with the text, in JSON lines and Parquet.
        txt_unit: one document in a `.txt` file: all of it, a `paragraph` (blank lines
            between them) or a `line`.
        sequence_length: tokens of a block; all but the first are predicted.
        batch_size: blocks of one batch, over all ranks together.
        batches_per_epoch: batches between two Lightning epochs, which are no passes over the text.
        document_attention: `isolated` lets each document see itself alone, with positions that
            restart and no loss on its first token; `stream` lets it see the end of the document
            before it, which is faster.
        val_fraction: share of the distinct documents that is held out, one at least.
        val_blocks: the most validation blocks; 0 for none.
        val_batch_size: blocks in one validation batch of each rank.
        split_seed: seed of the choice of held-out documents.
        seed: seed of the order of the training blocks.
    """

    positive_flags = ("batch_size", "batches_per_epoch", "val_batch_size")

    def __init__(
        self,
        path: str,
        tokenizer: str,
        text_column: str = "text",
        txt_unit: TxtUnit = "document",
        sequence_length: int = 256,
        batch_size: int = 16,
        batches_per_epoch: int = 10,
        document_attention: Literal["isolated", "stream"] = "isolated",
        val_fraction: float = 0.05,
        val_blocks: int = 64,
        val_batch_size: int = 16,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, seed)
        self.path = path
        self.text_column = text_column
        self.txt_unit: TxtUnit = txt_unit
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.document_attention = document_attention
        self.val_fraction = val_fraction
        self.val_blocks = val_blocks
        self.val_batch_size = val_batch_size
        self.split_seed = split_seed

    def prepare_data(self) -> None:
        self._check_flags()
        _ = self._documents

    def setup(self, stage: str) -> None:
        """Check every flag, cheapest first, and read and tokenize the text."""
        self._check_flags()
        if stage in ("test", "predict"):
            raise ValueError(
                f"--data TextDataModule has nothing to {stage}: its held-out text is for "
                "`rlsgd validate`"
            )
        if stage == "fit":
            check_accumulation(self.batches_per_epoch, self.accumulate)
            self._share(self.batch_size, self.world_size, flag="batch_size")
            if not self.num_blocks(self.train_stream):
                raise ValueError(
                    f"--data.sequence_length {self.sequence_length} is more than the "
                    f"{len(self.train_stream.token_ids)} tokens there are to train on"
                )
        self._held_out_blocks()

    # ---- text

    @cached_property
    def _documents(self) -> list[str]:
        return read_documents(self.path, column=self.text_column, txt_unit=self.txt_unit)

    @cached_property
    def split(self) -> tuple[list[str], list[str]]:
        """Texts to train on, in the order of the files, and held-out ones, in a random order."""

        def rank(text: str) -> int:
            return derived_seed("held-out text", self.split_seed, text)

        distinct = sorted(set(self._documents), key=rank)
        count = max(1, round(self.val_fraction * len(distinct)))
        held_out = distinct[:count]
        excluded = set(held_out)
        train = [text for text in self._documents if text not in excluded]
        if not train:
            raise ValueError(
                f"--data.path {self.path}: {len(distinct)} different documents are too few to hold "
                "out some; in a .txt file, --data.txt_unit paragraph makes more of them"
            )
        return train, held_out

    @cached_property
    def train_stream(self) -> TokenStream:
        """Tokens to train on."""
        return self._tokenized(self.split[0])

    @cached_property
    def val_stream(self) -> TokenStream:
        """Held-out tokens."""
        return self._tokenized(self.split[1])

    def _tokenized(self, texts: list[str]) -> TokenStream:
        eos = self.tokenizer.eos_token_id
        parts, starts = [], []
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            some: Any = self.tokenizer(texts[first : first + TEXTS_AT_ONCE], verbose=False)
            documents = [ids if ids[-1] == eos else [*ids, eos] for ids in some["input_ids"]]
            parts.append(torch.tensor(list(chain(*documents)), dtype=torch.int32))
            ends = torch.tensor([len(ids) for ids in documents]).cumsum(0)
            begins = torch.zeros(len(parts[-1]), dtype=torch.bool)
            begins[0] = begins[ends[:-1]] = True
            starts.append(begins)
        return TokenStream(torch.cat(parts), torch.cat(starts))

    # ---- blocks

    def num_blocks(self, stream: TokenStream) -> int:
        """Blocks that the stream fills."""
        return (len(stream.token_ids) - 1) // (self.sequence_length - 1)

    def blocks(self, stream: TokenStream, numbers: list[int]) -> SupervisedBatch:
        """The blocks of the given numbers as a batch; its denominator is the tokens they predict.

        Block n is tokens n (L - 1) to n (L - 1) + L - 1 of the stream, L being `sequence_length`.
        """
        first = torch.tensor(numbers)[:, None] * (self.sequence_length - 1)
        places = first + torch.arange(self.sequence_length)
        starts = stream.starts[places]
        starts[:, 0] = True
        isolated = self.document_attention == "isolated"
        predicted = ~starts if isolated else torch.ones_like(starts)
        predicted[:, 0] = False
        return SupervisedBatch(
            input_ids=stream.token_ids[places].long(),
            attention_mask=torch.ones_like(starts),
            completion_mask=predicted,
            denominator=predicted.sum(),
            position_ids=restarting_positions(starts) if isolated else None,
        )

    def batches(
        self, epoch: int, *, rank: int = 0, world_size: int = 1, accumulate: int = 1
    ) -> Iterator[SupervisedBatch]:
        """This rank's contiguous share of every batch of the epoch, a function of (seed, epoch).

        The denominator of `accumulate` batches is the tokens that they predict on all ranks.
        """
        check_accumulation(self.batches_per_epoch, accumulate)
        share = self._share(self.batch_size, world_size, flag="batch_size")
        count, step = self.batches_per_epoch * self.batch_size, self.batch_size * accumulate
        size = self.num_blocks(self.train_stream)
        numbers = rows_of_epoch(size, seed=self.seed, epoch=epoch, count=count)
        for first in range(0, count, step):
            whole = self.blocks(self.train_stream, numbers[first : first + step])
            for start in range(rank * share, step, self.batch_size):
                yield whole.select(torch.arange(start, start + share))

    def train_dataloader(self) -> SupervisedLoader:
        return SupervisedLoader(self)

    def val_dataloader(self) -> DataLoader | list:
        blocks = self._held_out_blocks()
        if not blocks:
            return []
        batches = batches_of_rank(blocks, self.val_batch_size, self.rank, self.world_size)
        return evaluation_loader(batches, lambda numbers: self.blocks(self.val_stream, numbers))

    def _held_out_blocks(self) -> list[int]:
        if self.val_blocks == 0:
            return []
        blocks = list(range(min(self.val_blocks, self.num_blocks(self.val_stream))))
        if len(blocks) < self.world_size:
            raise ValueError(
                f"--data.val_fraction {self.val_fraction}: the {len(self.split[1])} held-out "
                f"documents fill {len(blocks)} blocks of {self.sequence_length} tokens (at most "
                f"--data.val_blocks {self.val_blocks}), and every rank needs one; hold out more"
            )
        return blocks

    def _check_flags(self) -> None:
        self._check_positive()
        check_fraction(self.val_fraction, flag="--data.val_fraction", lowest_excluded=True)
        if self.sequence_length < 2:
            raise ValueError("--data.sequence_length must be at least 2: a token and the next")
        if self.val_blocks < 0:
            raise ValueError(f"--data.val_blocks must not be negative; got {self.val_blocks}")
