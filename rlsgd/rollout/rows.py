"""Prompts and completions as rows of one width."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsgd.core.types import Sampled


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
    return input_ids.to(device, non_blocking=True), attention_mask.to(device, non_blocking=True)


def assemble(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, stop_token_ids: list[int]
) -> Sampled:
    """Join prompts [B, P] and completions [B, C] and derive the masks from the stop tokens.

    A token counts if no stop token came before it, so the first stop token counts and what a
    sampler wrote after it does not, also where padding and stop token are the same id.
    """
    stop_ids = torch.tensor(stop_token_ids).to(completion_ids.device, non_blocking=True)
    stops = torch.isin(completion_ids, stop_ids)
    alive = (stops.long().cumsum(1) - stops.long()) == 0  # [B, C]
    return Sampled(
        input_ids=torch.cat([prompt_ids, completion_ids], 1),
        attention_mask=torch.cat([prompt_mask, alive], 1),
        completion_mask=torch.cat([torch.zeros_like(prompt_mask), alive], 1),
        truncated=~stops.any(1),
    )
