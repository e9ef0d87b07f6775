"""Sampling completions and turning them into minibatches."""

from rlsgd.rollout.sampler import HFSampler, Sampler
from rlsgd.rollout.vllm.sampler import VLLMSampler

__all__ = ["HFSampler", "Sampler", "VLLMSampler"]
