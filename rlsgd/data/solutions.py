"""SolutionDataModule: the same problems with their answers, for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from rlsgd.data.prompts import PromptDataModule
from rlsgd.data.tasks.base import Task
from rlsgd.problems import Problem
from rlsgd.types import Rollouts


class SolutionDataModule(PromptDataModule):
    """Batches of prompt, answer on record and end-of-sequence token.

    The problems of an epoch, and the prompts, validation and test sets, are those of
    `PromptDataModule` with `prompts_per_epoch = batches_per_epoch * batch_size`.

    Args:
        task: where problems come from.
        tokenizer: path of the model whose tokenizer and chat template are used.
        batches_per_epoch: batches of one epoch.
        batch_size: solutions of one batch, over all ranks together.
        answer_prefix: put before every answer, such as a space or `<answer>`.
    """

    positive_flags = ("batches_per_epoch", "batch_size", *PromptDataModule.positive_flags)

    def __init__(
        self,
        task: Task,
        tokenizer: str,
        batches_per_epoch: int = 4,
        batch_size: int = 32,
        answer_prefix: str = "",
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

    def batches(self, epoch: int, *, rank: int = 0, world_size: int = 1) -> Iterator[Rollouts]:
        """This rank's contiguous share of every batch of the epoch, a function of (seed, epoch)."""
        share = self._share(self.batch_size, world_size, flag="batch_size")
        count = self.prompts_per_epoch
        problems = self.task.train_problems(seed=self.seed, epoch=epoch, count=count)
        for start in range(rank * share, count, self.batch_size):
            yield self._collate(problems[start : start + share])

    def train_dataloader(self) -> SolutionLoader:  # pyright: ignore[reportIncompatibleMethodOverride]
        return SolutionLoader(self)

    def _check_first_epoch(self) -> None:
        for _ in self.batches(0, rank=self.rank, world_size=self.world_size):
            pass

    def _collate(self, problems: list[Problem]) -> Rollouts:
        prompts = self._render(problems)
        answers = [self._answer_ids(problem) for problem in problems]
        lengths = [len(p.token_ids) + len(a) for p, a in zip(prompts, answers, strict=True)]
        shape = (len(prompts), max(lengths))
        pad = self.tokenizer.pad_token_id
        input_ids = torch.full(shape, self._eos if pad is None else int(pad))  # pyright: ignore[reportArgumentType]
        attention_mask = torch.zeros(shape, dtype=torch.bool)
        completion_mask = torch.zeros(shape, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            length = lengths[row]
            input_ids[row, :length] = torch.tensor(prompt.token_ids + answer)
            attention_mask[row, :length] = True
            completion_mask[row, len(prompt.token_ids) : length] = True
        return Rollouts(
            input_ids=input_ids,
            attention_mask=attention_mask,
            completion_mask=completion_mask,
            truncated=torch.zeros(len(prompts), dtype=torch.bool),
            prompts=prompts,
            completions=[self.answer_prefix + problem.answer for problem in problems],
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
        text = self.answer_prefix + problem.answer
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self._eos]  # pyright: ignore


class SolutionLoader:
    """Sized iterable over this rank's batches of the trainer's present epoch.

    It has a length so that Lightning does not fetch a batch ahead of the epoch's end.
    """

    def __init__(self, data: SolutionDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.batches_per_epoch

    def __iter__(self) -> Iterator[Rollouts]:
        data = self.data
        assert data.trainer is not None
        epoch = data.trainer.current_epoch
        return data.batches(epoch, rank=data.rank, world_size=data.world_size)
