"""PPO's advantages, losses and critic metrics, computed by hand.

| row | tokens | values      | reward | ended        |
|-----|--------|-------------|--------|--------------|
| 0   | 2      | 0.5, 0.25   | 1      | by itself    |
| 1   | 1      | 0.5         | 0      | by the budget, 0.75 expected after it |
"""

import threading

import pytest
import torch
from torch import nn

from rlsgd.algorithms import PPO
from rlsgd.functional.critic import explained_variance
from rlsgd.functional.kl import kl_penalty
from rlsgd.functional.masked import masked_whiten
from tests.algorithms.setups import bare, batch_of, with_denominators

MASK = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0]], dtype=torch.bool)


def placed(*numbers, padding=0.0):
    """Numbers at the three unmasked positions."""
    result = torch.full(MASK.shape, padding, dtype=torch.float64)
    result[MASK] = torch.tensor(numbers, dtype=torch.float64)
    return result


def rollouts_of(**fields):
    rollouts = batch_of(MASK, rewards=torch.tensor([1.0, 0.0], dtype=torch.float64), **fields)
    rollouts.truncated = torch.tensor([False, True])
    return rollouts


def ppo(folder, *, padding=0.0, **options):
    """A module whose critic says what the table says."""
    module = bare(PPO, folder, **options)
    last_values = torch.tensor([123.0, 0.75], dtype=torch.float64)
    module.values = lambda rollouts: (placed(0.5, 0.25, 0.5, padding=padding), last_values)
    return module


@pytest.mark.parametrize("padding", [0.0, 1e3, float("nan")])
@pytest.mark.parametrize(("bootstrap", "truncated_row"), [(False, -0.5), (True, -0.125)])
def test_advantages(tiny_llama, padding, bootstrap, truncated_row):
    # --- gamma = lam = 0.5. Row 0: errors 1 - 0.25 = 0.75 and 0.5 * 0.25 - 0.5 = -0.375,
    # --- advantages 0.75 and -0.375 + 0.5 * 0.5 * 0.75 = -0.1875
    # --- row 1: 0 - 0.5, or 0.5 * 0.75 - 0.5 where what comes after the budget counts
    module = ppo(
        tiny_llama,
        padding=padding,
        gamma=0.5,
        lam=0.5,
        whiten_advantages=False,
        bootstrap_truncated=bootstrap,
    )
    rollouts = rollouts_of()
    advantages = module.advantages(rollouts, group_size=1)
    assert torch.equal(advantages, placed(-0.1875, 0.75, truncated_row))
    assert torch.equal(rollouts.returns[MASK], placed(0.3125, 1.0, truncated_row + 0.5)[MASK])
    assert rollouts.metrics["critic/values/mean"] == pytest.approx(1.25 / 3, rel=1e-6)
    returns_mean = (1.3125 + truncated_row + 0.5) / 3
    assert rollouts.metrics["critic/returns/mean"] == pytest.approx(returns_mean, rel=1e-6)


def test_reward_and_bootstrap_add_up(tiny_llama):
    rollouts = rollouts_of()
    rollouts.rewards[1] = 0.25
    module = ppo(tiny_llama, whiten_advantages=False, bootstrap_truncated=True)
    # --- gamma = lam = 1: 0.25 + 0.75 - 0.5
    assert module.advantages(rollouts, group_size=1)[1, 2] == 0.5


def test_kl_in_the_reward(tiny_llama):
    options = {"kl_in": "reward", "kl_coef": 0.5, "kl_estimator": "k1", "whiten_advantages": False}
    rollouts = rollouts_of(
        old_logprobs=placed(-1.0, -2.0, -3.0, padding=float("nan")),
        ref_logprobs=placed(-1.5, -1.75, -3.5, padding=float("nan")),
    )
    # --- k1: 0.5, -0.25, 0.5; half of each off the reward: -0.25, 1.125, -0.25
    # --- gamma = lam = 1: rewards to go 0.875, 1.125, -0.25, minus the values
    advantages = ppo(tiny_llama, **options).advantages(rollouts, group_size=1)
    assert torch.equal(advantages, placed(0.375, 0.875, -0.75))
    assert torch.equal(rollouts.returns, placed(0.875, 1.125, -0.25))
    assert rollouts.metrics["kl"] == pytest.approx(0.75 / 3)


def test_kl_is_in_one_place_only(tiny_llama):
    logprobs = {
        "old_logprobs": placed(-1.0, -1.0, -1.0),
        "ref_logprobs": placed(-1.0, -1.0, -2.0),
    }
    shared = {"kl_coef": 0.5, "kl_estimator": "k1", "whiten_advantages": False}
    in_loss = ppo(tiny_llama, kl_in="loss", **shared)
    in_reward = ppo(tiny_llama, kl_in="reward", **shared)
    losses = []
    for module in (in_loss, in_reward):
        rollouts = with_denominators(module, rollouts_of(**logprobs))
        rollouts.advantages = module.advantages(rollouts, group_size=1)
        module.policy_logprobs = lambda batch: (batch.old_logprobs, batch.old_logprobs)
        module.value_loss = lambda batch: 0.0
        losses.append(module.loss(rollouts).item())
    # --- advantages 0.5, 0.75, -0.5; the KL of 1 at the last token either adds 0.5 to the loss of
    # --- its token or takes 0.5 off its advantage, which at ratio 1 is the same value
    assert losses == pytest.approx([(-0.75 + 0.5) / 3, (-0.25) / 3], rel=1e-12)
    assert in_loss.logged["kl"] == pytest.approx(1 / 3) and "kl" not in in_reward.logged


@pytest.mark.parametrize(("estimator", "order"), [("k1", 1), ("k2", 2), ("k3", 2)])
def test_as_a_reward_only_k1_has_the_gradient_of_the_kl(estimator, order):
    """Exact expectation over a vocabulary of five, near the reference and twice as near."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(5, generator=generator, dtype=torch.float64)
    direction = torch.randn(5, generator=generator, dtype=torch.float64)
    sizes = []
    for distance in (2e-3, 1e-3):
        logits = (reference + distance * direction).requires_grad_()
        logprobs, ref_logprobs = logits.log_softmax(0), reference.log_softmax(0)
        mask = torch.ones(5, dtype=torch.bool)
        penalty = kl_penalty(logprobs, ref_logprobs, mask, estimator=estimator).detach()
        (gradient,) = torch.autograd.grad(
            (logprobs.exp().detach() * penalty * logprobs).sum(), logits, retain_graph=True
        )
        kl = (logprobs.exp() * (logprobs - ref_logprobs)).sum()
        (exact,) = torch.autograd.grad(kl, logits)
        sizes.append(gradient.norm().item())
        assert torch.allclose(gradient, exact, rtol=1e-9, atol=1e-15) == (estimator == "k1")
    assert sizes[0] / sizes[1] == pytest.approx(2**order, rel=0.01)


def test_whitening_is_a_flag(tiny_llama):
    raw = ppo(tiny_llama, whiten_advantages=False).advantages(rollouts_of(), group_size=1)
    white = ppo(tiny_llama, whiten_advantages=True).advantages(rollouts_of(), group_size=1)
    # --- gamma = lam = 1: 0.5, 0.75, -0.5; mean 0.25, variance (0.0625 + 0.25 + 0.5625) / 3
    assert torch.equal(raw, placed(0.5, 0.75, -0.5))
    deviation = (0.875 / 3 + 1e-8) ** 0.5
    expected = placed(0.25 / deviation, 0.5 / deviation, -0.75 / deviation)
    torch.testing.assert_close(white, expected, rtol=0, atol=1e-15)


def test_whitening_over_ranks_equals_whitening_together():
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 0, 4])[:, None]
    together = masked_whiten(values, mask)
    parts, barrier = [None, None], threading.Barrier(2)
    results = [None, None]

    def rank(number, rows):
        def global_sum(part):
            parts[number] = part
            barrier.wait()
            total = parts[0] + parts[1]
            barrier.wait()
            return total

        results[number] = masked_whiten(values[rows], mask[rows], global_sum=global_sum)

    threads = [
        threading.Thread(target=rank, args=(number, rows))
        for number, rows in enumerate((slice(0, 2), slice(2, 6)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat(results), together, rtol=0, atol=1e-14)


class Fixed(nn.Module):
    """A critic with a value for each token as its parameter."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, policy, batch):
        return self.values, torch.zeros(len(self.values))


@pytest.mark.parametrize("padding", [0.0, 1e3, float("nan")])
@pytest.mark.parametrize(
    ("value_clip", "losses", "fraction"),
    [
        # --- row 0: value 1 from 0.5 to 0: half of 1; value 0.25 stays, to 1: half of 0.75^2
        # --- row 1: value 0.75 from 0 to 1: half of 0.25^2, or where it may move by 0.5 at most,
        # --- half of 0.5^2, which is worse and has no gradient
        (None, [0.5, 0.28125, 0.03125], 0.0),
        (0.5, [0.5, 0.28125, 0.125], 1.0),
    ],
)
def test_value_loss(tiny_llama, padding, value_clip, losses, fraction):
    module = bare(PPO, tiny_llama, value_clip=value_clip, value_coef=4.0)
    module.policy, module.value = None, Fixed(placed(1.0, 0.25, 0.75, padding=padding))
    batch = rollouts_of(
        values=placed(0.5, 0.25, 0.0, padding=padding),
        returns=placed(0.0, 1.0, 1.0, padding=padding),
    )
    batch.num_tokens = torch.tensor(4)  # one more in another microbatch
    loss = module.value_loss(batch)
    loss.backward()
    assert loss.item() == pytest.approx(sum(losses) / 4, rel=1e-12)
    assert module.logged["value_loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert module.logged["critic/vf_clipfrac"] == pytest.approx(fraction / 4)
    last = 0.0 if value_clip else -0.25
    assert torch.equal(module.value.values.grad * 4, placed(1.0, -0.75, last))


def test_loss_is_the_policys_plus_the_weighted_critics(tiny_llama):
    module = bare(PPO, tiny_llama, value_coef=4.0, aggregation="seq-mean-token-mean")
    module.policy, module.value = None, Fixed(placed(1.0, 1.0, 1.0))
    batch = with_denominators(
        module,
        rollouts_of(
            values=placed(1.0, 1.0, 1.0),
            returns=placed(0.0, 1.0, 1.0),
            advantages=placed(1.0, -2.0, 3.0),
        ),
    )
    logprobs = placed(-1.0, -1.0, -1.0)
    module.policy_logprobs = lambda batch: (logprobs, logprobs)
    # --- policy: rows average (-1 + 2) / 2 and -3, their mean is -1.25
    # --- critic: half of 1 over 3 tokens, four times
    assert module.loss(batch).item() == pytest.approx(-1.25 + 4 * 0.5 / 3, rel=1e-12)


@pytest.mark.parametrize("padding", [0.0, 1e3, float("nan")])
def test_explained_variance(padding):
    returns = placed(1.0, 2.0, 6.0, padding=padding)
    values = placed(1.0, 1.0, 4.0, padding=padding)
    # --- returns: mean 3, variance (4 + 1 + 9) / 3; errors 0, 1, 2: variance 2 / 3
    explained = explained_variance(values, returns, MASK)
    assert explained.item() == pytest.approx(1 - 2 / 14, rel=1e-12)
    assert explained_variance(returns, returns, MASK) == 1
    assert explained_variance(placed(5.0, 5.0, 5.0), returns, MASK).item() == pytest.approx(0)
    rounded = placed(1.0, 1.0 + 1e-7, 1.0)
    assert explained_variance(values, rounded, MASK) == 0
    assert explained_variance(values, returns, torch.zeros_like(MASK)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "--model.gamma must be between 0 and 1"),
        ({"lam": -0.1}, "--model.lam must be between 0 and 1"),
        ({"value_clip": 0.0}, "--model.value_clip must be above 0"),
        ({"value_coef": 0.0}, "--model.value_coef must be above 0"),
        ({"clip_low": 1.0}, "--model.clip_low must be in"),
        ({"critic_warmup_epochs": -1}, "--model.critic_warmup_epochs must not be negative"),
        ({"kl_in": "reward", "kl_coef": 0.1}, "--model.kl_in reward needs --model.kl_estimator k1"),
    ],
)
def test_bad_flags(tiny_llama, options, message):
    with pytest.raises(ValueError, match=message):
        bare(PPO, tiny_llama, **options)
