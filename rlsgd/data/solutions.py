"""SolutionDataModule: the same problems with their answers, for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.solutions(0, 0, rank=self.rank, world_size=self.world_size)

    def solutions(self, epoch: int, batch: int, *, rank: int = 0, world_size: int = 1) -> Rollouts:
        """This rank's share of one batch, padded on the right; a function of (seed, epoch)."""
        count = self.prompts_per_epoch
        problems = self.task.train_problems(seed=self.seed, epoch=epoch, count=count)
        return self._collate(self._rows(problems, batch, rank, world_size))

    def train_dataloader(self) -> SolutionLoader:  # pyright: ignore[reportIncompatibleMethodOverride]
        return SolutionLoader(self.batches_per_epoch, self._epoch_batches)

    def _epoch_batches(self) -> Iterator[Rollouts]:
        epoch = self.trainer.current_epoch if self.trainer else 0
        count = self.prompts_per_epoch
        problems = self.task.train_problems(seed=self.seed, epoch=epoch, count=count)
        for batch in range(self.batches_per_epoch):
            yield self._collate(self._rows(problems, batch, self.rank, self.world_size))

    def _rows(
        self, problems: list[Problem], batch: int, rank: int, world_size: int
    ) -> list[Problem]:
        share = self._share(self.batch_size, world_size, flag="batch_size")
        start = batch * self.batch_size + rank * share
        return problems[start : start + share]

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
    """Sized iterable over the batches of the present epoch.

    It has a length so that Lightning does not fetch a batch ahead of the epoch's end.
    """

    def __init__(self, length: int, batches: Callable[[], Iterator[Rollouts]]) -> None:
        self.length = length
        self.batches = batches

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Rollouts]:
        return self.batches()
