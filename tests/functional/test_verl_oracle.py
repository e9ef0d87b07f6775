"""Advantages, losses and aggregation against verl's `core_algos`, an independent implementation.

What differs, each on purpose:

- verl whitens the advantages of `gae` in place and divides by the sample variance, we by the
  population's: sqrt((n - 1) / n) between the two (`test_whitening_equals_verl`).
- verl bounds the ratio of negative advantages at 3 unless told otherwise. Plain PPO has no such
  bound, so it is raised far out of reach before plain PPO is compared.
- verl adds 1e-8 to the number of tokens in `masked_mean` and `seq-mean-token-mean`.
- A group of one keeps its raw reward as its advantage in verl; we refuse it.
- Their k3 is exp(d) - d - 1 and clamped to 10, ours expm1(d) - d and not.
"""

import numpy as np
import pytest
import torch

from rlsgd.functional.advantages import group_relative, leave_one_out
from rlsgd.functional.aggregation import aggregate, aggregation_count
from rlsgd.functional.critic import clipped_value_loss, gae, terminal_rewards
from rlsgd.functional.kl import kl_penalty
from rlsgd.functional.masked import masked_mean, masked_whiten
from tests.helpers.clipping import clip_fractions, clipped_policy_loss

pytest.importorskip("verl")
from verl.trainer.ppo import core_algos
from verl.utils import torch_functional as verl_functional

EXACT = {"rtol": 0, "atol": 1e-14}
OUT_OF_REACH = 1e9
BUDGET = 12


@pytest.fixture
def mask():
    """Ragged rows, one of them with a gap inside and one with nothing."""
    mask = torch.arange(9) < torch.tensor([9, 4, 7, 1, 0, 5])[:, None]
    mask[2, 2:4] = False
    return mask


def normal(mask, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(mask.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (0.97, 0.0), (1.0, 0.8)])
def test_gae_equals_verl(mask, gamma, lam):
    values = normal(mask, 1)
    rewards = terminal_rewards(normal(mask, 2)[:, 0], mask) + 0.1 * normal(mask, 3)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    whitened, their_returns = core_algos.compute_gae_advantage_return(
        rewards, values, mask.double(), gamma, lam
    )
    torch.testing.assert_close(returns[mask], their_returns[mask], **EXACT)
    our_whitened = verl_functional.masked_whiten(advantages, mask.double())
    torch.testing.assert_close(our_whitened[mask], whitened[mask], **EXACT)
    assert returns[mask].std() > 0.1


def test_whitening_equals_verl(mask):
    values = normal(mask, 1)
    bessel = (int(mask.sum()) - 1) / int(mask.sum())
    ours = masked_whiten(values, mask, eps=1e-8 * bessel) * bessel**0.5
    theirs = verl_functional.masked_whiten(values, mask.double())
    # their 1e-8 added to the 24 tokens, in mean and variance
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=2e-9)


@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [
        ("token-mean", 1e-15),
        ("seq-mean-token-sum", 1e-15),
        ("seq-mean-token-sum-norm", 1e-15),
        ("seq-mean-token-mean", 1e-8),  # their 1e-8 added to a row of one token
    ],
)
def test_aggregation_equals_verl(mask, mode, tolerance):
    per_token = normal(mask, 1)
    ours = aggregate(
        per_token,
        mask,
        mode=mode,
        denominator=aggregation_count(mask, mode),
        max_completion_tokens=BUDGET,
    )
    theirs = core_algos.agg_loss(per_token, mask.double(), mode, loss_scale_factor=BUDGET)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_aggregation_modes_differ_here(mask):
    modes = ["token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"]
    losses = [
        float(core_algos.agg_loss(normal(mask, 1), mask.double(), mode, loss_scale_factor=BUDGET))
        for mode in modes
    ]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-3


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_penalty_equals_verl(mask, estimator):
    logprobs, ref_logprobs = normal(mask, 1, 0.5), normal(mask, 2, 0.5)
    ours = kl_penalty(logprobs, ref_logprobs, mask, estimator=estimator)
    theirs = core_algos.kl_penalty(logprobs, ref_logprobs, estimator)
    torch.testing.assert_close(ours[mask], theirs[mask], **EXACT)


@pytest.fixture
def groups():
    """Rewards of three prompts with four completions each; none has equal rewards."""
    rewards = torch.tensor([1, 0, 0, 0, 0.2, 0.9, 0.4, 0.4, 1, 1, 0, 1], dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 2, 1, 4, 3, 3, 5, 1, 2, 4, 4, 5])[:, None]
    return rewards, mask, np.repeat(["first", "second", "third"], 4)


@pytest.mark.parametrize("scale", [True, False])
def test_group_relative_advantages_equal_verl(groups, scale):
    rewards, mask, index = groups
    ours = group_relative(rewards, 4, scale=scale)
    theirs, _ = core_algos.compute_grpo_outcome_advantage(
        terminal_rewards(rewards, mask), mask.double(), index, norm_adv_by_std_in_grpo=scale
    )
    torch.testing.assert_close(ours[:, None] * mask, theirs, **EXACT)


@pytest.mark.parametrize(
    "function",
    [
        core_algos.compute_rloo_outcome_advantage,
        core_algos.compute_rloo_vectorized_outcome_advantage,
    ],
)
def test_leave_one_out_advantages_equal_verl(groups, function):
    rewards, mask, index = groups
    theirs, _ = function(terminal_rewards(rewards, mask), mask.double(), index)
    torch.testing.assert_close(leave_one_out(rewards, 4)[:, None] * mask, theirs, **EXACT)


@pytest.mark.parametrize("clip", [0.05, 0.5, 50.0])
def test_value_loss_equals_verl(mask, clip):
    old_values, returns = normal(mask, 1), normal(mask, 2)
    ours_in = (old_values + normal(mask, 3, 0.4)).requires_grad_()
    theirs_in = ours_in.detach().clone().requires_grad_()
    per_token = clipped_value_loss(ours_in, old_values, returns, mask, clip=clip)
    unclipped = clipped_value_loss(ours_in, old_values, returns, mask, clip=None)
    theirs, their_fraction = core_algos.compute_value_loss(
        theirs_in, returns, old_values, mask.double(), clip
    )
    loss = masked_mean(per_token, mask)
    loss.backward()
    theirs.backward()
    torch.testing.assert_close(loss, theirs, **EXACT)
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, **EXACT)
    fraction = masked_mean(per_token > unclipped, mask)
    torch.testing.assert_close(fraction.double(), their_fraction.double(), rtol=1e-6, atol=0)
    assert (their_fraction > 0) == (clip < 50)


@pytest.mark.parametrize("dual_clip", [None, 1.5, 2.0])
def test_policy_loss_equals_verl(mask, dual_clip):
    old_logprobs, advantages = normal(mask, 1), normal(mask, 2)
    ours_in = (old_logprobs + normal(mask, 3, 1.2)).requires_grad_()
    theirs_in = ours_in.detach().clone().requires_grad_()
    per_token = clipped_policy_loss(
        ours_in, old_logprobs, advantages, mask, clip_low=0.2, clip_high=0.28, dual_clip=dual_clip
    )
    theirs, their_fraction, _, their_dual_fraction = core_algos.compute_policy_loss(
        old_logprobs,
        theirs_in,
        advantages,
        mask.double(),
        cliprange_low=0.2,
        cliprange_high=0.28,
        clip_ratio_c=OUT_OF_REACH if dual_clip is None else dual_clip,
    )
    loss = masked_mean(per_token, mask)
    loss.backward()
    theirs.backward()
    torch.testing.assert_close(loss, theirs, **EXACT)
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, **EXACT)
    assert their_fraction > 0
    assert (their_dual_fraction > 0) == (dual_clip is not None)
    clipped = clip_fractions(ours_in, old_logprobs, advantages, mask, 0.2, 0.28)
    fraction = masked_mean(clipped["clip_ratio/region_mean"], mask)
    torch.testing.assert_close(fraction.double(), their_fraction.double(), rtol=1e-6, atol=0)


def test_default_dual_clip_of_verl_is_not_plain_ppo():
    """At advantage -1 and ratio 5 plain PPO loses 5 and verl's default 3."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    logprobs, old_logprobs = torch.full((1, 1), 5.0).log(), torch.zeros(1, 1)
    advantages = torch.tensor([[-1.0]])
    ours = clipped_policy_loss(logprobs, old_logprobs, advantages, mask)
    theirs, *_ = core_algos.compute_policy_loss(
        old_logprobs, logprobs, advantages, mask.float(), cliprange=0.2
    )
    torch.testing.assert_close(ours, torch.tensor([[5.0]]))
    torch.testing.assert_close(theirs, torch.tensor(3.0))
