"""SolutionDataModule: the same problems with their answers, for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlsgd.core.problems import Problem
from rlsgd.core.types import SupervisedBatch
from rlsgd.data.base import SupervisedLoader, check_accumulation
from rlsgd.data.packing import Document, batch_of_rows, first_fit
from rlsgd.data.prompts import PromptDataModule
from rlsgd.data.tasks.base import Task


class SolutionDataModule(PromptDataModule):
    """Batches of prompt, answer on record and end-of-sequence token.

    In the layouts of GSM8K, MATH and NuminaMath the whole solution stands in for the answer.

    The problems of an epoch, and the prompts, validation and test sets, are those of
    `PromptDataModule` with `prompts_per_epoch = batches_per_epoch * batch_size`.

    Args:
        task: source of the problems.
        tokenizer: path of the model whose tokenizer and chat template are used.
        batches_per_epoch: batches of one epoch.
        batch_size: solutions of one batch, over all ranks together.
        answer_prefix: put before every answer, such as a space or `<answer>`.
        packing: put several solutions in one row instead of padding each to the longest. Each sees
            itself alone, and the loss is the same.
        packed_row_tokens: most tokens of a row with more than one solution.
    """

    positive_flags = (
        "batches_per_epoch",
        "batch_size",
        "packed_row_tokens",
        *PromptDataModule.positive_flags,
    )

    def __init__(
        self,
        task: Task,
        tokenizer: str,
        batches_per_epoch: int = 4,
        batch_size: int = 32,
        answer_prefix: str = "",
        packing: bool = False,
        packed_row_tokens: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            task=task,
            tokenizer=tokenizer,
            prompts_per_epoch=batches_per_epoch * batch_size,
            **kwargs,
        )
        self.batches_per_epoch = batches_per_epoch
        self.batch_size = batch_size
        self.answer_prefix = answer_prefix
        self.packing = packing
        self.packed_row_tokens = packed_row_tokens

    def batches(
        self, epoch: int, *, rank: int = 0, world_size: int = 1, accumulate: int = 1
    ) -> Iterator[SupervisedBatch]:
        """This rank's contiguous share of every batch of the epoch, a function of (seed, epoch).

        The denominator of `accumulate` batches is the number of their answers' tokens on all ranks.
        """
        check_accumulation(self.batches_per_epoch, accumulate)
        share = self._share(self.batch_size, world_size, flag="batch_size")
        count, step = self.prompts_per_epoch, self.batch_size * accumulate
        problems = self.task.train_problems(seed=self.seed, epoch=epoch, count=count)
        for first in range(0, count, step):
            answers = [self._answer_ids(problem) for problem in problems[first : first + step]]
            denominator = torch.tensor(sum(map(len, answers)))
            for start in range(rank * share, step, self.batch_size):
                part = slice(start, start + share)
                of_step = problems[first : first + step]
                yield self._collate(of_step[part], answers[part], denominator)

    def train_dataloader(self) -> SupervisedLoader:  # pyright: ignore[reportIncompatibleMethodOverride]
        return SupervisedLoader(self)

    def _check_first_epoch(self) -> None:
        size = {"rank": self.rank, "world_size": self.world_size, "accumulate": self.accumulate}
        for _ in self.batches(0, **size):
            pass

    def _collate(
        self, problems: list[Problem], answers: list[list[int]], denominator: Tensor
    ) -> SupervisedBatch:
        prompts = self._render(problems)
        documents = [
            Document(prompt.token_ids + answer, len(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        pad = self.tokenizer.pad_token_id
        pad_token_id: Any = self._eos if pad is None else pad
        settings = {"pad_token_id": int(pad_token_id), "denominator": denominator}
        if self.packing:
            lengths = [len(document.token_ids) for document in documents]
            places = first_fit(lengths, self.packed_row_tokens)
            rows = [[documents[i] for i in row] for row in places]
            return batch_of_rows(rows, packed=True, **settings)
        rows = [[document] for document in documents]
        return replace(
            batch_of_rows(rows, packed=False, **settings),
            prompts=prompts,
            completions=[self.answer_prefix + solution_of(problem) for problem in problems],
        )

    @property
    def _eos(self) -> int:
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ValueError(
                "--data.tokenizer: it has no end-of-sequence token, so a model would never learn "
                "to stop after the answer"
            )
        return int(eos)  # pyright: ignore[reportArgumentType]

    def _answer_ids(self, problem: Problem) -> list[int]:
        if not problem.answer:
            raise ValueError(
                f"--data.task: no answer on record for {problem.question[:80]!r}; supervised "
                "fine-tuning needs one"
            )
        text = self.answer_prefix + solution_of(problem)
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self._eos]  # pyright: ignore


def solution_of(problem: Problem) -> str:
    """The whole solution, where the data set has one that ends with the answer."""
    return problem.metadata.get("solution", problem.answer)
