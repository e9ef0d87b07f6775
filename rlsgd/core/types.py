"""Plain data that travels between the rooms of rlsgd, split by what exists when.

| class | exists | adds |
|---|---|---|
| `TokenBatch` | always | what a model can score: ids and masks |
| `SupervisedBatch` | for SFT and pre-training | the denominator of its loss |
| `Sampled` | after sampling | what was cut off, the sampler's log-probabilities |
| `Rollouts` | after scoring | texts, rewards, metrics; log-probabilities of the trainer |
| `Experience` | before the updates | advantages |
| `Microbatch` | in an update | the denominators of its minibatch |

Shape legend, used in every signature: B = completions in the batch (prompts x group size),
T = tokens of prompt and completion together, K = columns scored, V = vocabulary. Column t of a
[B, T] tensor belongs to token t: `logprobs[:, t]` is the log-probability *of* token t; column 0
is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from rlsgd.core.problems import Prompt


@dataclass
class TokenBatch:
    """Rows of tokens, some of which are scored.

    Sampled rows have prompts padded on the left and completions on the right, so every completion
    starts in the same column; nothing downstream relies on that, only on the masks.
    """

    input_ids: Tensor  # [B, T] long
    attention_mask: Tensor  # [B, T] bool, False on padding
    completion_mask: Tensor  # [B, T] bool, True where a token counts in the loss
    # [B, T] where rows hold several documents, each of which sees itself alone: 0 where one begins
    position_ids: Tensor | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.input_ids)

    @classmethod
    def extending(cls, batch: TokenBatch, **more: Any) -> Self:
        """The fields of a batch of one of the base classes, and the ones that this class adds."""
        return cls(**{f.name: getattr(batch, f.name) for f in fields(batch)}, **more)

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor; Lightning calls this on each batch."""
        moved = {
            f.name: value.to(device, non_blocking=torch.device(device).type != "cpu")
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def select(self, rows: Tensor) -> Self:
        """The given rows [N] as a new batch; denominators and `metrics` are carried over."""
        assert rows.dtype == torch.long, "rows are indices, not a mask: the lists need them too"
        picked: dict[str, Any] = {}
        there = {device: rows.to(device, non_blocking=True) for device in self._devices()}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and value.ndim > 0:
                picked[f.name] = value[there[value.device]]
            elif isinstance(value, list) and value:
                picked[f.name] = [value[i] for i in rows.tolist()]
        return replace(self, **picked)

    def _devices(self) -> set[torch.device]:
        values = (getattr(self, f.name) for f in fields(self))
        return {value.device for value in values if isinstance(value, Tensor)}

    def trim(self) -> Self:
        """The same rows without the columns that are padding in all of them."""
        if not len(self):
            return self
        used = self.attention_mask.any(0).cpu().nonzero().squeeze(1)
        columns = slice(int(used[0]), int(used[-1]) + 1)
        trimmed = {
            f.name: value[:, columns]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor) and value.ndim == 2
        }
        return replace(self, **trimmed)


@dataclass(kw_only=True)
class SupervisedBatch(TokenBatch):
    """Texts on record, whose tokens are to become more probable."""

    denominator: Tensor  # [] scored tokens of the optimizer step: all its batches, all ranks
    prompts: list[Prompt] = field(default_factory=list)  # B, where a row is one prompt and answer
    completions: list[str] = field(default_factory=list)  # B, likewise


@dataclass
class Sampled(TokenBatch):
    """What a sampler returns. Rows are completions; those of a prompt are adjacent."""

    truncated: Tensor  # [B] bool, True where the token budget ended before the model did
    # [B, T] by the sampler, where it reports them
    sampler_logprobs: Tensor | None = field(default=None, kw_only=True)
    # [B, T] of the policy that sampled, by the sampler or else the trainer, where one knows it
    sampled_entropy: Tensor | None = field(default=None, kw_only=True)
    metrics: dict[str, float] = field(default_factory=dict, kw_only=True)  # of the whole rollout


@dataclass
class Rollouts(Sampled):
    """Completions of the current policy with their rewards."""

    rewards: Tensor = field(kw_only=True)  # [B]
    prompts: list[Prompt] = field(default_factory=list, kw_only=True)  # B, one for each row
    completions: list[str] = field(default_factory=list, kw_only=True)  # B decoded texts
    # B reasons why there was no score
    failures: list[str | None] = field(default_factory=list, kw_only=True)
    # What not every algorithm computes, by the policy at rollout time, the reference, the critic:
    old_logprobs: Tensor | None = field(default=None, kw_only=True)  # [B, T]
    ref_logprobs: Tensor | None = field(default=None, kw_only=True)  # [B, T]
    values: Tensor | None = field(default=None, kw_only=True)  # [B, T]
    returns: Tensor | None = field(default=None, kw_only=True)  # [B, T] what it should have said


@dataclass
class Experience(Rollouts):
    """Rollouts that a policy can learn from."""

    advantages: Tensor = field(kw_only=True)  # [B] or [B, T]
    # [B] bool, on the CPU: True where no token adds to the loss, so that no update computes the row
    idle: Tensor | None = field(default=None, kw_only=True)


@dataclass
class Microbatch(Experience):
    """What one forward and backward pass sees of an experience."""

    denominator: Tensor = field(kw_only=True)  # [] of the minibatch's summed loss, over all ranks
    num_tokens: Tensor = field(kw_only=True)  # [] completion tokens of the minibatch, likewise
    # [B, T] of the policy's next-token distribution now, once `policy_logprobs` has seen it
    entropy: Tensor | None = field(default=None, kw_only=True)
    rollout: Experience | None = field(default=None, kw_only=True)  # all that this rank sampled
    left_out: Experience | None = field(default=None, kw_only=True)  # its idle rows

    def with_left_out(self) -> list[Experience]:
        """All rows of the microbatch: those that are computed, and those that need not be."""
        return [self] if self.left_out is None else [self, self.left_out]


class DivergedError(RuntimeError):
    """Weights, gradients or loss stopped being finite. The command line exits with `EXIT_CODE`.

    Args:
        what: is not finite, and since when: a sentence without its full stop.
        optimizer: argument of the module whose learning rate is to be lowered.
        clip: flag of the clipping that would help.
    """

    EXIT_CODE = 3

    def __init__(
        self, what: str, *, optimizer: str = "optimizer", clip: str = "--trainer.gradient_clip_val"
    ) -> None:
        super().__init__(f"{what}. Lower --model.{optimizer}.init_args.lr or set {clip}")

    @classmethod
    def of_weight(cls, name: str, step: int) -> Self:
        """For a weight or its gradient, after that optimizer step."""
        return cls(f"{name} is no longer finite after optimizer step {step}")
