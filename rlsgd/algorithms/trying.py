"""The models of an RL module are tried out for every length of row, before the first rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsgd.models.scoring import prove_scoring
from rlsgd.rollout.reading import prove_sampling
from rlsgd.rollout.sampler import HFSampler

if TYPE_CHECKING:
    from rlsgd.algorithms.rl import RLModule


def longest_row(module: RLModule) -> int:
    """Tokens of the longest row that training may meet."""
    return module.task_data.max_prompt_tokens + module.max_completion_tokens


def try_models(module: RLModule) -> None:
    """Try scoring by policy and reference, sampling by the policy, and prompts that are shared.

    Raises:
        ValueError: a model computes what is asked for wrong.
    """
    longest = longest_row(module)
    for model in filter(None, (module.policy, module.reference)):
        prove_scoring(model, longest)
    if isinstance(module.sampler, HFSampler):
        for length in (0, longest):
            prove_sampling(module.policy, length)
    _ = module.shares_prompts  # said, or refused
