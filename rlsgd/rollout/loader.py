"""A rollout is the data of one Lightning epoch: how it is made, and how updates are fed from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlsgd.core.distributed import global_sum
from rlsgd.core.problems import Prompt, Scores
from rlsgd.core.types import Experience, Microbatch, Rollouts
from rlsgd.models.loading import check_positions
from rlsgd.rollout.microbatches import without_idle
from rlsgd.rollout.sampler import HFSampler, Sampler


class TurnEnds(Protocol):
    """Knows the tokens beside eos that end a completion."""

    @property
    def turn_ends(self) -> list[int]: ...


class Reader(Protocol):
    """Turns sampled tokens into the texts that rewards see."""

    def text(self, token_ids: list[int], ends: list[int]) -> str: ...


class PromptData(Protocol):
    """What sampling asks of its data, such as PromptDataModule."""

    group_size: int
    prompts_per_epoch: int

    @property
    def renderer(self) -> TurnEnds: ...
    @property
    def reader(self) -> Reader: ...
    def score(self, prompts: list[Prompt], completions: list[str]) -> Scores: ...
    def prompts(
        self, epoch: int, *, rank: int = 0, world_size: int = 1, attempt: int = 0
    ) -> list[Prompt]: ...


class SamplingModule(Protocol):
    """What sampling asks of a module: a policy, and how it is sampled."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    max_completion_tokens: int
    stop_token_ids: list[int]

    @property
    def trainer(self) -> Trainer: ...
    @property
    def task_data(self) -> PromptData: ...
    def require_finite_weights(self) -> None: ...


class LearningModule(Protocol):
    """What ExperienceLoader asks of a module, such as RLModule."""

    inner_epochs: int
    minibatches: int

    def check_group_size(self, group_size: int) -> None: ...
    def rollout(self, prompts: list[Prompt], group_size: int) -> Experience: ...
    def minibatch_rows(self, rollouts: Rollouts, inner_epoch: int) -> list[list[Tensor]]: ...
    def denominators(self, minibatch: Rollouts) -> tuple[Tensor, Tensor]: ...


class ExperienceLoader:
    """Sized iterable: one `iter()` rolls out once with the current policy and yields microbatches.

    It has a length because Lightning prefetches from an unsized iterable, which would sample
    rollout n + 1 before update n. The order is inner epochs, then minibatches, then the
    `--trainer.accumulate_grad_batches` microbatches of each minibatch. Every microbatch carries the
    denominator of its whole minibatch over all ranks, so splitting changes no gradient. Rows that
    add nothing to the loss count in denominators alone and are left out of the microbatches.

    Args:
        data: source of an epoch's prompts.
        trainer: its `lightning_module` is a LearningModule.
    """

    def __init__(self, data: PromptData, trainer: Trainer) -> None:
        self.data = data
        self.trainer = trainer
        self.module = cast(LearningModule, trainer.lightning_module)
        check_sizes(self.module, data, trainer)

    def __len__(self) -> int:
        module = self.module
        return module.inner_epochs * module.minibatches * self.trainer.accumulate_grad_batches

    def __iter__(self) -> Iterator[Microbatch]:
        epoch, trainer = self.trainer.current_epoch, self.trainer
        prompts = self.data.prompts(epoch, rank=trainer.global_rank, world_size=trainer.world_size)
        experience = self.module.rollout(prompts, self.data.group_size)
        idle = experience.idle
        if idle is None:
            idle = torch.zeros(len(experience), dtype=torch.bool)
        is_sampling_policy = True  # until the first optimizer step
        for inner_epoch in range(self.module.inner_epochs):
            for microbatches in self.module.minibatch_rows(experience, inner_epoch):
                counts = self.module.denominators(experience.select(torch.cat(microbatches)))
                denominator, num_tokens = map(global_sum, counts)
                for rows, left_out in without_idle(microbatches, idle, denominator.device):
                    batch = Microbatch.extending(
                        experience.select(rows).trim(),
                        denominator=denominator,
                        num_tokens=num_tokens,
                        rollout=experience,
                        left_out=experience.select(left_out),
                    )
                    if is_sampling_policy:  # its own, so that ratios are exactly 1, idle rows or no
                        batch.old_logprobs = None
                    yield batch
                is_sampling_policy = False


def check_sizes(module: LearningModule, data: PromptData, trainer: Trainer) -> None:
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


def sample_and_score(
    module: SamplingModule,
    prompts: list[Prompt],
    *,
    completions_per_prompt: int,
    temperature: float,
    seed: int,
    with_entropy: bool = False,
) -> tuple[Rollouts, Scores]:
    """Completions of the present policy with texts and rewards; a prompt's rows are adjacent.

    With `with_entropy`, a sampler that is the policy itself notes the entropy of every token.
    """
    module.require_finite_weights()
    data = module.task_data
    module.stop_token_ids = sorted({*module.stop_token_ids, *data.renderer.turn_ends})
    longest = max(len(prompt.token_ids) for prompt in prompts)
    check_positions(module.policy, longest, module.max_completion_tokens)
    own = {"with_entropy": with_entropy} if isinstance(module.sampler, HFSampler) else {}
    with torch.no_grad(), module.trainer.precision_plugin.forward_context():
        sampled = module.sampler.sample(
            module.policy,
            [prompt.token_ids for prompt in prompts],
            completions_per_prompt=completions_per_prompt,
            max_completion_tokens=module.max_completion_tokens,
            temperature=temperature,
            stop_token_ids=module.stop_token_ids,
            pad_token_id=int(module.tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
            seed=seed,
            **own,
        )
    tokens = zip(sampled.input_ids.cpu(), sampled.completion_mask.cpu(), strict=True)
    completions = [
        data.reader.text(ids[mask].tolist(), module.stop_token_ids) for ids, mask in tokens
    ]
    by_row = [prompt for prompt in prompts for _ in range(completions_per_prompt)]
    scores = data.score(by_row, completions)
    rollouts = Rollouts.extending(
        sampled,
        rewards=torch.tensor(scores.rewards).to(sampled.input_ids.device, non_blocking=True),
        prompts=by_row,
        completions=completions,
        failures=list(scores.failures),
    )
    return rollouts, scores
