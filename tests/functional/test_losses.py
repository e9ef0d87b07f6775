import math

import pytest
import torch

from rlsgd.functional.critic import clipped_value_loss
from rlsgd.functional.logprobs import token_logprobs
from rlsgd.functional.losses import Clip
from tests.helpers.clipping import clip_fractions, clipped_policy_loss


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


EVERY_TOKEN = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("advantage", "ratio", "clip", "loss", "gradient"),
    [
        # Clipped above where the advantage is positive: -1.2 * 1, no gradient.
        (1.0, 1.5, {}, -1.2, 0.0),
        # Below with a positive advantage it is unclipped: gradient -A * ratio.
        (1.0, 0.5, {}, -0.5, -0.5),
        # Clipped below where it is negative: 0.8 * 1.
        (-1.0, 0.5, {}, 0.8, 0.0),
        # Above with a negative advantage: unclipped.
        (-1.0, 1.5, {}, 1.5, 1.5),
        # 1.25 is outside [0.8, 1.2] and inside [0.8, 1.28].
        (2.0, 1.25, {}, -2.4, 0.0),
        (2.0, 1.25, {"clip_high": 0.28}, -2.5, -2.5),
        # 0.75 is outside [0.8, 1.2] and inside [0.7, 1.2].
        (-2.0, 0.75, {}, 1.6, 0.0),
        (-2.0, 0.75, {"clip_low": 0.3}, 1.5, 1.5),
        # The dual clip bounds the loss of negative advantages at dual_clip * |A|, and no other.
        (-1.0, 5.0, {}, 5.0, 5.0),
        (-1.0, 5.0, {"dual_clip": 3.0}, 3.0, 0.0),
        (-1.0, 2.0, {"dual_clip": 3.0}, 2.0, 2.0),
        (-1.0, 0.5, {"dual_clip": 3.0}, 0.8, 0.0),
        (1.0, 5.0, {"dual_clip": 3.0}, -1.2, 0.0),
        (0.0, 5.0, {"dual_clip": 3.0}, 0.0, 0.0),
    ],
)
def test_policy_loss_by_hand(advantage, ratio, clip, loss, gradient):
    logprobs = column(math.log(ratio) - 2.0).requires_grad_()
    per_token = clipped_policy_loss(
        logprobs, column(-2.0), torch.tensor([advantage]).double(), EVERY_TOKEN, **clip
    )
    per_token.sum().backward()
    assert per_token.item() == pytest.approx(loss, rel=1e-14)
    assert logprobs.grad.item() == pytest.approx(gradient, rel=1e-14)


@pytest.mark.parametrize("clip", [{}, {"clip_low": 0.0, "clip_high": 0.0}, {"dual_clip": 3.0}])
@pytest.mark.parametrize("advantage_shape", [(6,), (6, 5)])
def test_gradient_at_ratio_one_is_reinforce(clip, advantage_shape):
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(advantage_shape, generator=generator)
    targets = torch.randint(0, 11, (6, 5), generator=generator)
    mask = torch.rand(6, 5, generator=generator) < 0.7
    initial = torch.randn(6, 5, 11, generator=generator)

    def gradient(loss):
        logits = initial.clone().requires_grad_()
        loss(token_logprobs(logits, targets)).backward()
        return logits.grad

    def surrogate(logprobs):
        return clipped_policy_loss(logprobs, logprobs.detach(), advantages, mask, **clip).sum()

    def reinforce(logprobs):
        return -(advantages.view(6, -1) * logprobs)[mask].sum()

    assert torch.equal(gradient(surrogate), gradient(reinforce))


def test_one_advantage_for_the_row_equals_one_for_each_token():
    logprobs = torch.tensor([[-0.1, -2.0, -0.7], [-1.0, -0.2, -0.4]])
    old_logprobs = torch.tensor([[-0.5, -1.0, -0.7], [-0.6, -0.9, -0.4]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    per_row = torch.tensor([1.5, -0.5])
    per_token = torch.tensor([[1.5, 1.5, float("nan")], [-0.5, -0.5, -0.5]])
    losses = [
        clipped_policy_loss(logprobs, old_logprobs, advantages, mask)
        for advantages in (per_row, per_token)
    ]
    assert torch.equal(*losses)
    assert losses[0][0, 2] == 0


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), -1e30])
def test_masked_tokens_reach_neither_value_nor_gradient(filler):
    mask = torch.tensor([[True, False]])
    logprobs = torch.tensor([[-1.0, 0.0]], requires_grad=True)
    old_logprobs = torch.tensor([[-1.1, filler]])
    advantages = torch.tensor([[2.0, filler]])
    loss = clipped_policy_loss(logprobs, old_logprobs, advantages, mask, dual_clip=3.0)
    loss.sum().backward()
    assert loss[0, 1].item() == 0
    torch.testing.assert_close(loss[0, 0].item(), -2 * math.exp(0.1), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        logprobs.grad, torch.tensor([[-2 * math.exp(0.1), 0.0]]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("clip", "flag"),
    [
        ({"clip_low": -0.1}, "clip_low"),
        ({"clip_low": 1.0}, "clip_low"),
        ({"clip_low": float("nan")}, "clip_low"),
        ({"clip_high": -0.1}, "clip_high"),
        ({"dual_clip": 1.2}, "dual_clip"),
        ({"dual_clip": 0.5}, "dual_clip"),
    ],
)
def test_bad_clips_are_refused_by_name(clip, flag):
    with pytest.raises(ValueError, match=rf"^{flag} must be"):
        Clip(**clip)


def test_clip_metrics_by_hand():
    ratios = torch.tensor([[0.5, 1.0, 1.5, 9.0], [0.5, 0.9, 1.5, 1.25]], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    old_logprobs = torch.full((2, 4), -1.0, dtype=torch.float64)
    clipped = clip_fractions(ratios.log() - 1.0, old_logprobs, advantages, mask, 0.2, 0.28)
    # Row 0 (A > 0): only 1.5 is clipped, above; its 9.0 is masked. Row 1 (A < 0): only 0.5, below.
    low = torch.tensor([[False] * 4, [True, False, False, False]])
    high = torch.tensor([[False, False, True, False], [False] * 4])
    assert clipped.keys() == {
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
    }
    assert torch.equal(clipped["clip_ratio/low_mean"], low)
    assert torch.equal(clipped["clip_ratio/high_mean"], high)
    assert torch.equal(clipped["clip_ratio/region_mean"], low | high)


def test_clipped_tokens_are_those_without_gradient():
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(20, 30, generator=generator, dtype=torch.float64).requires_grad_()
    old_logprobs = logprobs.detach() + 0.3 * torch.randn(20, 30, generator=generator)
    advantages = torch.randn(20, generator=generator).double()
    mask = torch.rand(20, 30, generator=generator) < 0.8
    clip = {"clip_low": 0.2, "clip_high": 0.28}
    clipped_policy_loss(logprobs, old_logprobs, advantages, mask, **clip).sum().backward()
    clipped = clip_fractions(logprobs, old_logprobs, advantages, mask, **clip)
    assert torch.equal(clipped["clip_ratio/region_mean"], (logprobs.grad == 0) & mask)
    assert clipped["clip_ratio/low_mean"].any() and clipped["clip_ratio/high_mean"].any()


def test_nothing_is_clipped_on_policy():
    logprobs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    advantages = torch.tensor([1.0, -1.0, 0.0])
    mask = torch.ones(3, 4, dtype=torch.bool)
    for clipped in clip_fractions(logprobs, logprobs, advantages, mask, 0.0, 0.0).values():
        assert not clipped.any()


@pytest.mark.parametrize(
    ("value", "old_value", "target", "clip", "loss", "gradient"),
    [
        (3.0, 2.75, 1.0, 0.5, 2.0, 2.0),  # inside the clip: 0.5 * (3 - 1)^2
        (3.0, 4.0, 1.0, 0.5, 3.125, 0.0),  # clipped value 3.5 is worse: 0.5 * 2.5^2
        (3.0, 2.0, 1.0, 0.5, 2.0, 2.0),  # clipped value 2.5 is better, so unclipped
        (3.0, 4.0, 1.0, None, 2.0, 2.0),
    ],
)
def test_value_loss_by_hand(value, old_value, target, clip, loss, gradient):
    values = column(value).requires_grad_()
    per_token = clipped_value_loss(
        values, column(old_value), column(target), EVERY_TOKEN, clip=clip
    )
    per_token.sum().backward()
    assert per_token.item() == loss
    assert values.grad.item() == gradient


@pytest.mark.parametrize("clip", [None, 0.5])
def test_masked_values_reach_neither_value_loss_nor_gradient(clip):
    values = torch.tensor([[3.0, float("nan"), 1.0]], requires_grad=True)
    old_values = torch.tensor([[3.0, 0.0, float("inf")]])
    returns = torch.tensor([[1.0, float("nan"), float("nan")]])
    mask = torch.tensor([[True, False, False]])
    loss = clipped_value_loss(values, old_values, returns, mask, clip=clip)
    loss.sum().backward()
    assert torch.equal(loss.detach(), torch.tensor([[2.0, 0.0, 0.0]]))
    assert torch.equal(values.grad, torch.tensor([[2.0, 0.0, 0.0]]))


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_bad_value_clip_is_refused_by_name(clip):
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"^value_clip must be above 0"):
        clipped_value_loss(one, one, one, EVERY_TOKEN, clip=clip)
