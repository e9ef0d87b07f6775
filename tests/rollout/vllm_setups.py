"""A model that vLLM's CPU kernels take, and comparing what an engine and the trainer say of it."""

import torch
from transformers import LlamaConfig

from rlsgd.rollout.microbatches import rollout_logprobs
from tests.helpers.tiny_models import LLAMA, PAD, save_tiny

STOPS = [1, *range(20, 26)]  # so that completions end at all lengths
# Sums of 256 float32 products in another order; logits reach 50, whose last bit is 4e-6.
TOLERANCE = 1e-4


def save_llama(folder):
    """Heads of 32, which vLLM's CPU attention has; room for a prompt of more than one KV block."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 256}
    config = LlamaConfig(**{**LLAMA, **sizes}, pad_token_id=PAD, tie_word_embeddings=True)
    return save_tiny(folder, config)


def prompts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, 64, (n,), generator=generator).tolist() for n in (3, 150, 9)]


def sample(sampler, policy, *, seed=0, temperature=0.7, stops=STOPS, tokens=12, group=4):
    return sampler.sample(
        policy,
        prompts(),
        completions_per_prompt=group,
        max_completion_tokens=tokens,
        temperature=temperature,
        stop_token_ids=stops,
        pad_token_id=PAD,
        seed=seed,
    )


def trainers_logprobs(policy, rollouts, temperature=0.7):
    with torch.no_grad():
        rows = [[torch.arange(len(rollouts))]]
        return rollout_logprobs(policy, rollouts, rows, temperature=temperature)[0]


def difference(policy, rollouts):
    """Largest over the completion tokens; both are 0 elsewhere."""
    return float((trainers_logprobs(policy, rollouts) - rollouts.sampler_logprobs).abs().max())


@torch.no_grad()
def move_weights(policy, generator, share=1.0):
    """Add noise to a share of the weights, and nothing to the others."""
    for parameter in policy.parameters():
        noise = 0.1 * torch.randn(parameter.shape, generator=generator)
        moved = torch.rand(parameter.shape, generator=generator) < share
        parameter.copy_(torch.where(moved, parameter + noise, parameter))
