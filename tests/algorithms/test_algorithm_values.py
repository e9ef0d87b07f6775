"""Losses and advantages of every algorithm, computed by hand.

Four completions in groups of two, one prompt column, and these ratios at their tokens:

| row | advantage | ratios           | their product | geometric mean |
|-----|-----------|------------------|---------------|----------------|
| 0   | 1         | 1, 1.5, 0.5      | 0.75          | 0.75^(1/3)     |
| 1   | -1        | 1.5              | 1.5           | 1.5            |
| 2   | 2         | 0.9, 1.25        | 1.125         | 1.125^(1/2)    |
| 3   | -2        | 0.5, 2           | 1             | 1              |
"""

from math import log

import pytest
import torch

from rlsgd.algorithms import (
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    REINFORCE,
    RLOO,
    DrGRPO,
    REINFORCEPlusPlus,
    REINFORCEPlusPlusBaseline,
)
from rlsgd.functional.losses import sequence_ratio
from tests.algorithms.setups import bare, batch_of, with_denominators

RATIOS = [[1.0, 1.5, 0.5], [1.5], [0.9, 1.25], [0.5, 2.0]]
ADVANTAGES = [1.0, -1.0, 2.0, -2.0]
MASK = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]], dtype=torch.bool)
EXACT = {"rel": 1e-12, "abs": 1e-12}


def filled(rows):
    """Numbers at the unmasked positions, nan at the others."""
    result = torch.full(MASK.shape, float("nan"), dtype=torch.float64)
    result[MASK] = torch.tensor([number for row in rows for number in row], dtype=torch.float64)
    return result


@pytest.fixture
def batch():
    """Log-probabilities of the policy that sampled are -1 everywhere."""
    old_logprobs = filled([[-1.0] * len(row) for row in RATIOS])
    advantages = torch.tensor(ADVANTAGES, dtype=torch.float64)
    return batch_of(MASK, old_logprobs=old_logprobs, advantages=advantages)


def loss_of(module, batch):
    logprobs = filled([[-1.0 + log(ratio) for ratio in row] for row in RATIOS])
    module.policy_logprobs = lambda batch: (logprobs, batch.old_logprobs)
    return module.loss(with_denominators(module, batch)).item()


def test_grpo(batch, tiny_llama):
    # --- row 0: -1, -1.2 (clipped), -0.5; row 1: 1.5; row 2: -1.8, -2.4 (clipped)
    # --- row 3: 1.6 (clipped), 4; 0.2 in all, over 8 tokens
    module = bare(GRPO, tiny_llama)
    assert loss_of(module, batch) == pytest.approx(0.2 / 8, **EXACT)
    clipped = {name: module.logged[f"clip_ratio/{name}_mean"] for name in ("low", "high", "region")}
    assert clipped == {"low": 1 / 8, "high": 2 / 8, "region": 3 / 8}
    by_row = -2.7 / 3 + 1.5 / 1 - 4.2 / 2 + 5.6 / 2
    module = bare(GRPO, tiny_llama, aggregation="seq-mean-token-mean")
    assert loss_of(module, batch) == pytest.approx(by_row / 4, **EXACT)


def test_grpo_dual_clip(batch, tiny_llama):
    # --- negative advantages lose at most 1.3 times their size: 1.5 -> 1.3 and 4 -> 2.6
    module = bare(GRPO, tiny_llama, dual_clip=1.3)
    assert loss_of(module, batch) == pytest.approx((0.2 - 0.2 - 1.4) / 8, **EXACT)


def test_dr_grpo(batch, tiny_llama):
    # --- GRPO's token sum over 4 completions of a budget of 5
    module = bare(DrGRPO, tiny_llama, max_completion_tokens=5)
    assert loss_of(module, batch) == pytest.approx(0.2 / (4 * 5), **EXACT)


def test_dapo(batch, tiny_llama):
    # --- the two ratios above are clipped at 1.28: -1.2 -> -1.28, and 1.25 is free: -2.4 -> -2.5
    assert loss_of(bare(DAPO, tiny_llama), batch) == pytest.approx(0.02 / 8, **EXACT)


def test_gspo(batch, tiny_llama):
    # --- row 0: -s, free to rise to 1; row 1: 1.5, free to fall; row 2: clipped; row 3: s = 1
    expected = (-(0.75 ** (1 / 3)) + 1.5 - 2 * 1.0004 + 2) / 4
    module = bare(GSPO, tiny_llama)
    assert loss_of(module, batch) == pytest.approx(expected, **EXACT)
    assert module.logged["clip_ratio/region_mean"] == 2 / 8  # the two tokens of row 2


def test_cispo(batch, tiny_llama):
    # --- minus weight * advantage * logprob, weights bounded by 1.4, logprob = log(ratio) - 1
    row_0 = 1.0 * 1 + 1.4 * (1 - log(1.5)) + 0.5 * (1 - log(0.5))
    row_1 = -1.4 * (1 - log(1.5))
    row_2 = 2 * (0.9 * (1 - log(0.9)) + 1.25 * (1 - log(1.25)))
    row_3 = -2 * (0.5 * (1 - log(0.5)) + 1.4 * (1 - log(2)))
    module = bare(CISPO, tiny_llama, max_ratio=1.4)
    assert loss_of(module, batch) == pytest.approx((row_0 + row_1 + row_2 + row_3) / 8, **EXACT)
    assert module.logged["clip_ratio/weight_mean"] == 3 / 8


def test_reinforce(batch, tiny_llama):
    # --- as CISPO without a bound, token sums over 4 completions
    row_0 = 1.0 * 1 + 1.5 * (1 - log(1.5)) + 0.5 * (1 - log(0.5))
    row_1 = -1.5 * (1 - log(1.5))
    row_2 = 2 * (0.9 * (1 - log(0.9)) + 1.25 * (1 - log(1.25)))
    row_3 = -2 * (0.5 * (1 - log(0.5)) + 2 * (1 - log(2)))
    expected = (row_0 + row_1 + row_2 + row_3) / 4
    assert loss_of(bare(REINFORCE, tiny_llama), batch) == pytest.approx(expected, **EXACT)


def test_rloo(batch, tiny_llama):
    # --- products of ratios: -0.75, 1.5, -2 * 1.125, 2
    module = bare(RLOO, tiny_llama)
    assert loss_of(module, batch) == pytest.approx((-0.75 + 1.5 - 2.25 + 2) / 4, **EXACT)


@pytest.mark.parametrize("algorithm", [REINFORCEPlusPlus, REINFORCEPlusPlusBaseline])
def test_reinforce_plus_plus(batch, tiny_llama, algorithm):
    # --- the surrogate is GRPO's, also where advantages are those of tokens
    batch.advantages = filled([[a] * len(r) for a, r in zip(ADVANTAGES, RATIOS, strict=True)])
    assert loss_of(bare(algorithm, tiny_llama), batch) == pytest.approx(0.2 / 8, **EXACT)


def test_kl_and_entropy_terms(batch, tiny_llama):
    # --- k2 of a reference that is 0.2 lower than the policy everywhere: 0.02 at every token
    logprobs = filled([[-1.0 + log(ratio) for ratio in row] for row in RATIOS])
    batch.ref_logprobs = logprobs - 0.2
    batch.entropy = filled([[0.1, 0.2, 0.3], [0.4], [0.5, 0.6], [0.7, 0.8]])  # 3.6 over 8 tokens
    options = {"kl_coef": 0.5, "kl_estimator": "k2", "aggregation": "seq-mean-token-sum"}
    module = bare(GRPO, tiny_llama, entropy_coef=0.25, **options)
    expected = 0.2 / 4 + 0.5 * (8 * 0.02) / 4 - 0.25 * 3.6 / 8
    assert loss_of(module, batch) == pytest.approx(expected, **EXACT)
    assert module.logged["kl"] == pytest.approx(0.02, **EXACT)


def test_sequence_ratios_stand_at_the_tokens_of_their_completion_alone():
    """1 and no gradient outside, whatever stands there."""
    expected = {True: [0.75 ** (1 / 3), 1.5, 1.125**0.5, 1.0], False: [0.75, 1.5, 1.125, 1.0]}
    for length_normalized, by_row in expected.items():
        logprobs = filled([[log(ratio) for ratio in row] for row in RATIOS]).requires_grad_()
        old_logprobs = filled([[0.0] * len(row) for row in RATIOS])
        ratio = sequence_ratio(logprobs, old_logprobs, MASK, length_normalized=length_normalized)
        rows = torch.tensor(by_row, dtype=torch.float64)[:, None].expand(MASK.shape)
        torch.testing.assert_close(ratio.detach(), torch.where(MASK, rows, 1.0))
        ratio.sum().backward()
        # --- each of n tokens moves n ratios, by 1/n of them if normalized
        tokens = MASK.sum(1, keepdim=True)
        moved = rows * (1 if length_normalized else tokens)
        torch.testing.assert_close(logprobs.grad, torch.where(MASK, moved, 0.0))


def advantages_of(module, rewards, mask=MASK, **fields):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    rollouts = batch_of(mask, rewards=rewards, **fields)
    return module.advantages(rollouts, 2), rollouts


def test_group_advantages(tiny_llama):
    rewards = [1.0, 0.0, 3.0, 3.0]
    std = 0.5**0.5  # of 0 and 1, with n - 1
    scaled = [0.5 / (std + 1e-6), -0.5 / (std + 1e-6), 0.0, 0.0]
    expected = {
        GRPO: scaled,
        GSPO: scaled,
        CISPO: scaled,
        DrGRPO: [0.5, -0.5, 0.0, 0.0],
        RLOO: [1.0, -1.0, 0.0, 0.0],
    }
    for algorithm, values in expected.items():
        got, _ = advantages_of(bare(algorithm, tiny_llama), rewards)
        assert got.tolist() == pytest.approx(values, **EXACT), algorithm


def test_reinforce_baselines(tiny_llama):
    rewards = [1.0, 0.0, 3.0, 3.0]  # mean 1.75
    expected = {
        "none": rewards,
        "group": [0.5, -0.5, 0.0, 0.0],
        "batch": [-0.75, -1.75, 1.25, 1.25],
        "running": [-0.75, -1.75, 1.25, 1.25],
    }
    for baseline, values in expected.items():
        got, _ = advantages_of(bare(REINFORCE, tiny_llama, baseline=baseline), rewards)
        assert got.tolist() == pytest.approx(values, **EXACT)


def test_running_baseline_is_of_earlier_iterations_and_in_checkpoints(tiny_llama):
    options = {"baseline": "running", "running_decay": 0.75}
    module = bare(REINFORCE, tiny_llama, **options)
    advantages_of(module, [1.0, 0.0, 3.0, 3.0])  # mean 1.75
    second, _ = advantages_of(module, [4.0, 4.0, 4.0, 0.0])  # mean 3
    assert second.tolist() == pytest.approx([2.25, 2.25, 2.25, -1.75])
    resumed = bare(REINFORCE, tiny_llama, **options)
    resumed.load_state_dict(module.state_dict())
    third, _ = advantages_of(resumed, [0.0, 0.0, 0.0, 0.0])
    assert third.tolist() == pytest.approx([-(0.75 * 1.75 + 0.25 * 3)] * 4, rel=1e-6)


def test_dapo_penalises_long_completions(tiny_llama):
    # --- budget 10, margin 4: 6 tokens lose 0, 8 lose 0.5, 9 lose 0.75, 10 lose 1; doubled
    lengths = torch.tensor([6, 8, 9, 10])
    mask = torch.arange(10) < lengths[:, None]
    options = {"max_completion_tokens": 10, "overlong_tokens": 4, "overlong_coef": 2.0}
    module = bare(DAPO, tiny_llama, scale_advantages=False, **options)
    got, rollouts = advantages_of(module, [1.0, 1.0, 1.0, 0.0], mask)
    # --- groups of 1 and 0; of 1 - 1.5 and 0 - 2
    assert got.tolist() == pytest.approx([0.5, -0.5, 0.75, -0.75])
    assert rollouts.metrics["overlong_penalty"] == pytest.approx(-2 * 2.25 / 4)
    assert rollouts.rewards.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert bare(DAPO, tiny_llama, max_completion_tokens=20480).overlong_tokens == 4096
    off, _ = advantages_of(
        bare(DAPO, tiny_llama, scale_advantages=False, overlong_tokens=0), [1.0, 1.0, 1.0, 0.0]
    )
    assert off.tolist() == [0.0, 0.0, 0.5, -0.5]


KL = [[0.1, 0.2, 0.4], [0.5], [0.0, 1.0], [-1.0, 0.0]]  # old_logprobs - ref_logprobs


def with_reference():
    old_logprobs = filled([[-1.0] * len(row) for row in RATIOS])
    return {"old_logprobs": old_logprobs, "ref_logprobs": old_logprobs - filled(KL)}


def test_rloo_takes_the_kl_off_the_reward(tiny_llama):
    # --- sums of KL 0.7, 0.5, 1, -1; rewards less half of them: 0.65, -0.25 and 2.5, 3.5
    module = bare(RLOO, tiny_llama, kl_coef=0.5)
    got, rollouts = advantages_of(module, [1.0, 0.0, 3.0, 3.0], **with_reference())
    assert got.tolist() == pytest.approx([0.9, -0.9, -1.0, 1.0], **EXACT)
    assert rollouts.metrics["kl"] == pytest.approx(1.2 / 8)
    assert "kl" not in module.logged


def test_reinforce_plus_plus_whitens_rewards_to_go(tiny_llama):
    # --- reward - 0.5 * (KL from the token to the end)
    credit = [[0.65, 0.7, 0.8], [-0.25], [2.5, 2.5], [3.5, 3.0]]
    values = [value for row in credit for value in row]
    mean = sum(values) / 8
    std = (sum((value - mean) ** 2 for value in values) / 8 + 1e-8) ** 0.5
    module = bare(REINFORCEPlusPlus, tiny_llama, kl_coef=0.5)
    got, _ = advantages_of(module, [1.0, 0.0, 3.0, 3.0], **with_reference())
    expected = [(value - mean) / std for value in values]
    assert got[MASK].tolist() == pytest.approx(expected, **EXACT)
    assert not got[~MASK].any()


def test_reinforce_plus_plus_baseline(tiny_llama):
    # --- centred in groups: 0.5 at 3 tokens, -0.5 at 1, 0 at 4; mean 0.125, mean square 0.125
    std = (0.125 - 0.125**2 + 1e-8) ** 0.5
    module = bare(REINFORCEPlusPlusBaseline, tiny_llama, kl_coef=0.5)
    assert module.kl_estimator == "k2"
    got, _ = advantages_of(module, [1.0, 0.0, 3.0, 3.0], **with_reference())
    expected = [0.375 / std] * 3 + [-0.625 / std] + [-0.125 / std] * 4
    assert got[MASK].tolist() == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("algorithm", [RLOO, REINFORCEPlusPlus])
def test_kl_in_the_reward_is_not_in_the_loss(batch, tiny_llama, algorithm):
    plain = loss_of(bare(algorithm, tiny_llama), batch)
    batch.ref_logprobs = batch.old_logprobs - 0.3
    assert loss_of(bare(algorithm, tiny_llama, kl_coef=0.5), batch) == plain
