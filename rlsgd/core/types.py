"""Plain data that travels between the rooms of rlsgd.

Shape legend, used in every signature: B = completions in the batch (prompts x group size),
T = tokens of prompt and completion together, K = columns scored, V = vocabulary. Column t of a
[B, T] tensor belongs to token t: `logprobs[:, t]` is the log-probability *of* token t; column 0
is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlsgd.core.problems import Prompt


@dataclass
class Rollouts:
    """Completions of the current policy with everything a loss needs. Rows are completions.

    Prompts are padded on the left and completions on the right, so every completion starts in the
    same column; nothing downstream relies on that, only on the masks.
    """

    input_ids: Tensor  # [B, T] long
    attention_mask: Tensor  # [B, T] bool, False on padding
    completion_mask: Tensor  # [B, T] bool, True where a sampled token counts in the loss
    truncated: Tensor  # [B] bool, True where the token budget ended before the model did
    sampler_logprobs: Tensor | None = None  # [B, T] by the sampler, where it reports them
    old_logprobs: Tensor | None = None  # [B, T] by the trainer's policy at rollout time
    ref_logprobs: Tensor | None = None  # [B, T] by the reference
    rewards: Tensor | None = None  # [B]
    advantages: Tensor | None = None  # [B] or [B, T]
    entropy: Tensor | None = None  # [B, T] of the policy's next-token distribution, now
    denominator: Tensor | None = None  # [] what the minibatch's summed loss is divided by, global
    values: Tensor | None = None  # [B, T] by the critic at rollout time
    returns: Tensor | None = None  # [B, T] what the critic should have said
    num_tokens: Tensor | None = None  # [] completion tokens of the minibatch, global
    # [B, T] where rows hold several documents, each of which sees itself alone: 0 where one begins
    position_ids: Tensor | None = None
    prompts: list[Prompt] = field(default_factory=list)  # B, one for each row
    completions: list[str] = field(default_factory=list)  # B decoded texts
    failures: list[str | None] = field(default_factory=list)  # B reasons why there was no score
    metrics: dict[str, float] = field(default_factory=dict)  # of the whole rollout, for logging

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str) -> Rollouts:
        """Move every tensor; Lightning calls this on each batch."""
        moved = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def select(self, rows: Tensor) -> Rollouts:
        """The given rows [N] as a new batch; `denominator` and `metrics` are carried over."""
        assert rows.dtype == torch.long, "rows are indices, not a mask: the lists need them too"
        picked: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and value.ndim > 0:
                picked[f.name] = value[rows.to(value.device)]
            elif isinstance(value, list) and value:
                picked[f.name] = [value[i] for i in rows.tolist()]
        return replace(self, **picked)

    def trim(self) -> Rollouts:
        """The same rows without the columns that are padding in all of them."""
        used = self.attention_mask.any(0).nonzero().squeeze(1)
        columns = slice(int(used[0]), int(used[-1]) + 1)
        trimmed = {
            f.name: value[:, columns]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor) and value.ndim == 2
        }
        return replace(self, **trimmed)


class DivergedError(RuntimeError):
    """Weights, gradients or loss stopped being finite. The command line exits with `EXIT_CODE`."""

    EXIT_CODE = 3
