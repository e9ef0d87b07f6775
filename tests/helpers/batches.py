"""Batches of prompts and completions that are written out."""

import torch

from rlsgd.core.types import TokenBatch
from tests.helpers.tiny_models import PAD

Rows = list[tuple[list[int], list[int]]]  # token ids of a prompt and its completion


def padded_batch(
    rows: Rows, *, left: int = 0, right: int = 0, align: bool = True, pad: int = PAD
) -> TokenBatch:
    """Prompts padded on the left, or everything on the right; plus extra columns."""
    prompt_width = max(len(prompt) for prompt, _ in rows) if align else 0
    starts = [max(prompt_width - len(prompt), 0) + left for prompt, _ in rows]
    width = max(s + len(p) + len(c) for s, (p, c) in zip(starts, rows, strict=True)) + right
    input_ids = torch.full((len(rows), width), pad)
    attention_mask = torch.zeros(input_ids.shape, dtype=torch.bool)
    completion_mask = attention_mask.clone()
    for row, (start, (prompt, completion)) in enumerate(zip(starts, rows, strict=True)):
        middle, end = start + len(prompt), start + len(prompt) + len(completion)
        input_ids[row, start:end] = torch.tensor(prompt + completion)
        attention_mask[row, start:end] = True
        completion_mask[row, middle:end] = True
    return TokenBatch(input_ids, attention_mask, completion_mask)
