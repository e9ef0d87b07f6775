"""Joining what was sampled in several rounds into one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlsgd.core.problems import Scores
from rlsgd.core.types import Rollouts


def join_rollouts(parts: list[Rollouts], pad_token_id: int) -> Rollouts:
    """Rows of freshly scored rollouts under each other, their completions in the same columns.

    Only what a sampler and a scorer write is joined; log-probabilities of the trainer, advantages
    and metrics belong to the joined batch and are computed for it. The sampler's own metrics are
    the first part's: the policy does not change between the rounds.
    """
    prompt_width = max(_prompt_width(part) for part in parts)
    width = max(part.input_ids.shape[1] - _prompt_width(part) for part in parts) + prompt_width

    def stacked(name: str, filler: float) -> Tensor:
        rows = []
        for part in parts:
            value = getattr(part, name)
            left = prompt_width - _prompt_width(part)
            padding = (left, width - left - value.shape[1])
            rows.append(torch.nn.functional.pad(value, padding, value=filler))
        return torch.cat(rows)

    def stacked_if_known(name: str) -> Tensor | None:
        known = all(getattr(part, name) is not None for part in parts)
        return stacked(name, 0.0) if known else None

    return Rollouts(
        input_ids=stacked("input_ids", pad_token_id),
        attention_mask=stacked("attention_mask", False),
        completion_mask=stacked("completion_mask", False),
        truncated=torch.cat([part.truncated for part in parts]),
        sampler_logprobs=stacked_if_known("sampler_logprobs"),
        sampled_entropy=stacked_if_known("sampled_entropy"),
        rewards=torch.cat([part.rewards for part in parts]),
        prompts=[prompt for part in parts for prompt in part.prompts],
        completions=[completion for part in parts for completion in part.completions],
        failures=[failure for part in parts for failure in part.failures],
        metrics=dict(parts[0].metrics),
    )


def join_scores(parts: list[Scores], rows: list[int]) -> Scores:
    """The given rows of several score sheets put under each other."""

    def picked(lists: list[list[Any]]) -> list[Any]:
        joined = [value for values in lists for value in values]
        return [joined[row] for row in rows] if joined else []

    return Scores(
        rewards=picked([part.rewards for part in parts]),
        parts={name: picked([part.parts[name] for part in parts]) for name in parts[0].parts},
        failures=picked([part.failures for part in parts]),
        full_marks=parts[0].full_marks,
        answers=picked([part.answers for part in parts]),
    )


def _prompt_width(part: Rollouts) -> int:
    """Columns before the first completion token, the same for every row."""
    return int(part.completion_mask.any(0).nonzero()[0])
