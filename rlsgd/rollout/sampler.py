"""Samplers: from prompt token ids to completion token ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.core.made_with import remembers_arguments
from rlsgd.core.types import Sampled
from rlsgd.models.sharding import compute_device, gathered_weights, is_sharded
from rlsgd.rollout.generation import Decoding, generate
from rlsgd.rollout.rows import assemble, left_pad


class Sampler(Protocol):
    """Anything that samples completions from a policy; training uses its token ids as they are."""

    def sample(
        self,
        policy: PreTrainedModel,
        prompt_ids: list[list[int]],
        *,
        completions_per_prompt: int,
        max_completion_tokens: int,
        temperature: float,
        stop_token_ids: list[int],
        pad_token_id: int,
        seed: int,
    ) -> Sampled:
        """Sample `completions_per_prompt` completions of each prompt; a group's rows are adjacent.

        Args:
            policy: the model to sample from, with its present weights.
            prompt_ids: token ids of each prompt, unpadded.
            completions_per_prompt: group size.
            max_completion_tokens: a completion that reaches it without a stop token is truncated.
            temperature: softmax temperature; 0 means greedy.
            stop_token_ids: a completion ends with the first of these, which counts as its token.
            pad_token_id: filler; may equal a stop token.
            seed: of this call; the same seed, weights and prompts give the same completions.
        """
        ...


@remembers_arguments
class HFSampler:
    """Samples with the policy itself, on CPU or GPU.

    No top-k, top-p or penalty is applied: the tokens come from the policy's own distribution. Each
    prompt is read once for all its completions, and a finished completion leaves the batch.

    Args:
        batch_size: completions generated at a time, of prompts of similar length; 0 means all at
            once. A batch has whole groups if one fits.
        report_logprobs: report of the log-probabilities that the completions were sampled with,
            which differ from the trainer's by rounding; see `--model.correction`.
        gather_weights: hold a sharded policy whole on every rank while it samples. Otherwise every
            layer is gathered anew for each token, which is slow, and the ranks sample in step until
            the last of them is done.
    """

    def __init__(
        self, batch_size: int = 0, report_logprobs: bool = False, gather_weights: bool = True
    ) -> None:
        if batch_size < 0:
            raise ValueError("--model.sampler.batch_size must be 0 (all at once) or positive")
        self.batch_size = batch_size
        self.report_logprobs = report_logprobs
        self.gather_weights = gather_weights

    @torch.no_grad()
    def sample(
        self,
        policy: PreTrainedModel,
        prompt_ids: list[list[int]],
        *,
        completions_per_prompt: int,
        max_completion_tokens: int,
        temperature: float,
        stop_token_ids: list[int],
        pad_token_id: int,
        seed: int,
        with_entropy: bool = False,
    ) -> Sampled:
        """As `Sampler.sample`; `with_entropy` notes each token's as well, which takes a pass more
        over the probabilities of its step."""
        in_step = is_sharded(policy) and not self.gather_weights
        if in_step and self.batch_size:
            raise ValueError(
                "--model.sampler.gather_weights false needs batch_size 0 with a sharded policy: "
                "ranks of unequal shares would make unequal numbers of batches"
            )
        device = compute_device(policy)
        prompts, prompt_mask = left_pad(prompt_ids, pad_token_id, device)
        decoding = Decoding(
            temperature=temperature,
            max_completion_tokens=max_completion_tokens,
            stop_token_ids=stop_token_ids,
            pad_token_id=pad_token_id,
            report_logprobs=self.report_logprobs,
            report_entropy=with_entropy,
            in_step=in_step,
        )
        num_rows = len(prompts) * completions_per_prompt
        parts: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = []
        was_training = policy.training
        policy.eval()
        try:
            with gathered_weights(policy) if self.gather_weights else nullcontext():
                for rows in self._batches(prompt_ids, completions_per_prompt):
                    numbers, prompt_of_row = torch.unique_consecutive(
                        rows // completions_per_prompt, return_inverse=True
                    )
                    ids, mask = left_pad(
                        [prompt_ids[i] for i in numbers.tolist()], pad_token_id, "cpu"
                    )
                    uniforms = _uniforms(seed, num_rows, rows)
                    parts.append(
                        (rows, *generate(policy, ids, mask, prompt_of_row, uniforms, decoding))
                    )
        finally:
            policy.train(was_training)
        width = max(ids.shape[1] for _, ids, *_ in parts)
        completion_ids = prompts.new_full((num_rows, width), pad_token_id)
        logprobs, entropy = torch.zeros(2, num_rows, prompts.shape[1] + width, device=device)
        for rows, ids, *of_tokens in parts:
            place = rows.to(device, non_blocking=True)
            completion_ids[place, : ids.shape[1]] = ids
            start, end = prompts.shape[1], prompts.shape[1] + ids.shape[1]
            for whole, found in zip((logprobs, entropy), of_tokens, strict=True):
                if found is not None:
                    whole[place, start:end] = found.to(whole)
        rollouts = assemble(
            prompts.repeat_interleave(completions_per_prompt, 0),
            prompt_mask.repeat_interleave(completions_per_prompt, 0),
            completion_ids,
            stop_token_ids,
        )
        if self.report_logprobs and temperature > 0:  # greedy tokens have none
            rollouts.sampler_logprobs = logprobs
        if with_entropy and temperature > 0:
            rollouts.sampled_entropy = entropy
        return rollouts

    def _batches(self, prompt_ids: list[list[int]], group_size: int) -> tuple[Tensor, ...]:
        """Rows of each batch: longest prompts first, and whole groups if one fits."""
        order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]), reverse=True)
        rows = (torch.tensor(order)[:, None] * group_size + torch.arange(group_size)).flatten()
        size = self.batch_size or len(rows)
        return rows.split(size // group_size * group_size or size)


def _uniforms(seed: int, num_rows: int, rows: Tensor) -> Iterator[Tensor]:
    """The uniform numbers of some rows, for one token after the other.

    They are drawn for all rows of the rollout, so that a row's do not depend on its batch.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.rand(num_rows, dtype=torch.float64, generator=generator)[rows]
