"""Gradients exactly at a bound: the losses' own, whatever `torch.clamp` does there."""

from __future__ import annotations

import pytest
import torch

from rlsgd.functional.critic import clipped_value_loss
from rlsgd.functional.logprobs import policy_ratio
from rlsgd.functional.losses import Clip, bounded

MASK = torch.ones(1, 1, dtype=torch.bool)


def test_bounded_has_gradient_one_from_bound_to_bound():
    values = torch.tensor([-2.0, -1.0, 0.5, 1.0, 3.0], requires_grad=True)
    limited = bounded(values, -1.0, 1.0)
    assert limited.tolist() == [-1.0, -1.0, 0.5, 1.0, 1.0]
    limited.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("clip_low", [0.0, 0.2])
@pytest.mark.parametrize("clip_high", [0.0, 0.2])
@pytest.mark.parametrize("advantage", [2.0, -3.0])
def test_at_ratio_one_the_gradient_is_reinforces(
    clip_low: float, clip_high: float, advantage: float
):
    logprobs = torch.tensor([[-1.5]], requires_grad=True)
    ratio = policy_ratio(logprobs, logprobs.detach(), MASK)
    loss = Clip(clip_low, clip_high).loss(ratio, torch.tensor([advantage]), MASK)
    loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == -advantage  # d ratio / d logprob is 1 at ratio 1


@pytest.mark.parametrize("move", [0.5, -0.5])
def test_at_the_bound_of_the_value_clip_the_gradient_is_the_unclipped_one(move: float):
    values = torch.tensor([[1.0 + move]], requires_grad=True)
    loss = clipped_value_loss(values, torch.tensor([[1.0]]), torch.tensor([[4.0]]), MASK, clip=0.5)
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.item() == 1.0 + move - 4.0
