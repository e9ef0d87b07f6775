"""The log-probabilities of what transformers' `generate` samples."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from rlsgd.functional.logprobs import token_logprobs
from rlsgd.types import Rollouts


class LogprobRecorder(LogitsProcessor):
    """Changes no logits; notes the log-probability of each sampled token at the next step.

    Keeps one step's logits [b, V], where `generate` itself would return those of all steps.

    Args:
        temperature: softmax temperature; transformers applies it after this processor.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.logits: Tensor | None = None
        self.columns: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore
        self.note(input_ids[:, -1])
        self.logits = scores
        return scores

    def note(self, sampled: Tensor) -> None:
        """Note the log-probabilities of the tokens [b] sampled from the logits seen last."""
        if self.logits is not None:
            logprobs = token_logprobs(self.logits, sampled, temperature=self.temperature)
            self.columns.append(logprobs)
        self.logits = None


def recorded_logprobs(
    recorders: list[LogprobRecorder], parts: list[Tensor], rollouts: Rollouts
) -> Tensor:
    """What was recorded as [B, T], 0 outside the completion mask.

    Args:
        recorders: one for each call of `generate`.
        parts: the completion tokens [b, C] of each call.
        rollouts: all of them, completions in the last columns.
    """
    result = torch.zeros(rollouts.input_ids.shape, device=rollouts.input_ids.device)
    prompt_width = result.shape[1] - max(part.shape[1] for part in parts)
    row = 0
    for recorder, part in zip(recorders, parts, strict=True):
        recorder.note(part[:, -1])
        block = torch.stack(recorder.columns, 1)
        assert block.shape == part.shape, "one log-probability for each token"
        result[row : row + len(part), prompt_width : prompt_width + part.shape[1]] = block
        row += len(part)
    return torch.where(rollouts.completion_mask, result, 0.0)
