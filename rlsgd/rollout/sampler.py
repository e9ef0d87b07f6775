"""Samplers: from prompt token ids to completion token ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from rlsgd.rollout.logprob_recorder import LogprobRecorder, recorded_logprobs
from rlsgd.sharding import compute_device, gathered_weights, is_sharded
from rlsgd.types import Rollouts


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
    ) -> Rollouts:
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


class HFSampler:
    """Samples with transformers' `generate` on the policy itself, on CPU or GPU.

    No top-k, top-p or penalty is applied: the tokens come from the policy's own distribution.

    Args:
        batch_size: completions generated at a time; 0 means all at once.
        report_logprobs: also report the log-probabilities that the completions were sampled with,
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
    ) -> Rollouts:
        device = compute_device(policy)
        input_ids, attention_mask = left_pad(prompt_ids, pad_token_id, device)
        input_ids = input_ids.repeat_interleave(completions_per_prompt, 0)
        attention_mask = attention_mask.repeat_interleave(completions_per_prompt, 0)
        sampling = (
            {"do_sample": False}
            if temperature == 0
            else {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        )
        config = GenerationConfig(
            max_new_tokens=max_completion_tokens,
            eos_token_id=stop_token_ids,
            pad_token_id=pad_token_id,
            **sampling,
        )
        in_step = is_sharded(policy) and not self.gather_weights
        if in_step and self.batch_size:
            raise ValueError(
                "--model.sampler.gather_weights false needs batch_size 0 with a sharded policy: "
                "ranks of unequal shares would make unequal numbers of batches"
            )
        size = self.batch_size or len(input_ids)
        starts = range(0, len(input_ids), size)
        reporting = self.report_logprobs and temperature > 0  # greedy tokens have none
        recorders = [LogprobRecorder(temperature) for _ in starts] if reporting else []
        was_training, shipped = policy.training, policy.generation_config
        policy.eval()
        # What the config above leaves open, generate takes from the model's own: its penalties too.
        policy.generation_config = GenerationConfig()
        try:
            whole = gathered_weights(policy) if self.gather_weights else nullcontext()
            with _seeded(device, seed), whole:
                parts = [
                    policy.generate(  # pyright: ignore[reportCallIssue]
                        inputs=input_ids[i : i + size],
                        attention_mask=attention_mask[i : i + size].long(),
                        generation_config=config,
                        logits_processor=LogitsProcessorList(recorders[number : number + 1]),
                        synced_gpus=in_step,
                    )[:, input_ids.shape[1] :]
                    for number, i in enumerate(starts)
                ]
        finally:
            policy.generation_config = shipped
            policy.train(was_training)
        width = max(part.shape[1] for part in parts)
        completion_ids = torch.cat(
            [
                torch.nn.functional.pad(part, (0, width - part.shape[1]), value=pad_token_id)
                for part in parts
            ]
        )
        rollouts = assemble(input_ids, attention_mask, completion_ids, stop_token_ids)
        if reporting:
            rollouts.sampler_logprobs = recorded_logprobs(recorders, parts, rollouts)
        return rollouts


def left_pad(
    prompt_ids: list[list[int]], pad_token_id: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Prompts as input_ids [P, T] and attention_mask [P, T] (bool), padded on the left."""
    if any(len(ids) == 0 for ids in prompt_ids):
        raise ValueError("a prompt has no tokens; remove it from --data.task's data")
    width = max(len(ids) for ids in prompt_ids)
    input_ids = torch.full((len(prompt_ids), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(len(prompt_ids), width, dtype=torch.bool)
    for row, ids in enumerate(prompt_ids):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        attention_mask[row, width - len(ids) :] = True
    return input_ids.to(device), attention_mask.to(device)


def assemble(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, stop_token_ids: list[int]
) -> Rollouts:
    """Join prompts [B, P] and completions [B, C] and derive the masks from the stop tokens.

    A token counts if no stop token came before it, so the first stop token counts and what a
    sampler wrote after it does not, also where padding and stop token are the same id.
    """
    stops = torch.isin(completion_ids, torch.tensor(stop_token_ids, device=completion_ids.device))
    alive = (stops.long().cumsum(1) - stops.long()) == 0  # [B, C]
    return Rollouts(
        input_ids=torch.cat([prompt_ids, completion_ids], 1),
        attention_mask=torch.cat([prompt_mask, alive], 1),
        completion_mask=torch.cat([torch.zeros_like(prompt_mask), alive], 1),
        truncated=~stops.any(1),
    )


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed what sampling on `device` draws from, and nothing else; put all back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all devices
        if device.type != "cpu":
            with torch.accelerator.device_index(device.index):
                torch.get_device_module(device).manual_seed(seed)
        yield
