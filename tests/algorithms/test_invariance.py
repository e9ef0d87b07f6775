"""What may not change GRPO's loss and gradient, through the real module in float64."""

from dataclasses import replace

import pytest
import torch

from rlsgd.algorithms import GRPO, GSPO, RLOO, REINFORCEPlusPlus
from rlsgd.core.types import Microbatch
from rlsgd.models.loading import load_policy
from rlsgd.models.scoring import completion_logprobs
from tests.algorithms.setups import bare, with_denominators

CLOSE = {"rtol": 1e-10, "atol": 1e-13}
PROMPTS = [[5, 9, 12, 30, 7], [14], [33, 2, 19]]
OPTIONS = {"kl_coef": 0.05, "entropy_coef": 0.01, "temperature": 0.6}


def loaded(algorithm, folder, **options):
    module = bare(algorithm, folder, **options)
    module.configure_model()
    module.policy.double()
    if module.reference is not None:
        module.reference.double()
    return module


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def folder(request):
    """Rotary and absolute positions."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def module(folder):
    return loaded(GRPO, folder, **OPTIONS)


@pytest.fixture
def rollouts(module, folder):
    """Twelve sampled completions; the policy that sampled is near, the reference is the policy."""
    sampled = module.sampler.sample(
        module.policy,
        PROMPTS,
        completions_per_prompt=4,
        max_completion_tokens=6,
        temperature=0.6,
        stop_token_ids=[1, *range(20, 26)],
        pad_token_id=0,
        seed=3,
    )
    generator = torch.Generator().manual_seed(0)
    shape = sampled.input_ids.shape
    noise = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    near = load_policy(str(folder)).double()
    with torch.no_grad():
        old_logprobs, _ = completion_logprobs(near, sampled, temperature=0.6)
    mask, unknown = sampled.completion_mask, torch.tensor(float("nan"))
    return Microbatch.extending(
        sampled,
        rewards=torch.full((len(sampled),), float("nan")),
        old_logprobs=torch.where(mask, old_logprobs + 0.3 * noise[0], 0.0),
        ref_logprobs=torch.where(mask, old_logprobs + 0.5 * noise[1], 0.0),
        advantages=torch.randn(len(sampled), generator=generator, dtype=torch.float64),
        denominator=unknown,
        num_tokens=unknown,
        prompts=[None] * len(sampled),
    )


def loss_and_gradient(module, minibatch, splits=1):
    """Sum over the microbatches, as an optimizer step sees it."""
    with_denominators(module, minibatch)
    module.policy.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(len(minibatch)).tensor_split(splits):
        share = module.loss(minibatch.select(rows).trim())
        share.backward()
        total += share.detach()
    return total, {n: p.grad.clone() for n, p in module.policy.named_parameters()}


@pytest.fixture
def expected(module, rollouts):
    loss, gradient = loss_and_gradient(module, rollouts)
    assert abs(loss) > 1e-3 and max(g.abs().max() for g in gradient.values()) > 1e-3
    lengths = rollouts.completion_mask.sum(1)
    assert lengths.min() < lengths.max() and not rollouts.attention_mask.all()  # it is ragged
    return loss, gradient


@pytest.mark.parametrize("splits", [2, 4, 12])
def test_microbatches(module, rollouts, expected, splits):
    torch.testing.assert_close(loss_and_gradient(module, rollouts, splits), expected, **CLOSE)


@pytest.mark.parametrize("aggregation", ["seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_microbatches_with_other_aggregations(folder, rollouts, aggregation):
    module = loaded(GRPO, folder, aggregation=aggregation, **OPTIONS)
    whole = loss_and_gradient(module, rollouts)
    torch.testing.assert_close(loss_and_gradient(module, rollouts, 4), whole, **CLOSE)


@pytest.mark.parametrize("algorithm", [GSPO, RLOO, REINFORCEPlusPlus])
def test_microbatches_of_sequence_ratios_and_token_advantages(folder, rollouts, algorithm):
    module = loaded(algorithm, folder, temperature=0.6)
    if algorithm is REINFORCEPlusPlus:
        rollouts.advantages = rollouts.advantages[:, None] * (2 + rollouts.old_logprobs)
    whole = loss_and_gradient(module, rollouts)
    torch.testing.assert_close(loss_and_gradient(module, rollouts, 4), whole, **CLOSE)


def test_sharing_prompts(rollouts, folder):
    """Of all algorithms' terms: the clipped loss, the KL and the entropy bonus."""
    plain, sharing = (
        loaded(GRPO, folder, share_prompts=share, **OPTIONS) for share in (False, True)
    )
    expected = loss_and_gradient(plain, rollouts)
    # transformers rotates and normalises in float32
    close = {"rtol": 0, "atol": 5e-6}
    torch.testing.assert_close(loss_and_gradient(sharing, rollouts), expected, **close)
    torch.testing.assert_close(loss_and_gradient(sharing, rollouts, 5), expected, **close)


def test_order_of_rows(module, rollouts, expected):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4))
    shuffled = loss_and_gradient(module, rollouts.select(order), 4)
    torch.testing.assert_close(shuffled, expected, **CLOSE)


def padded(rollouts, left, right):
    """More padding columns, which hold numbers that must not count."""
    fillers = {
        "input_ids": 7,
        "attention_mask": False,
        "completion_mask": False,
        "old_logprobs": float("nan"),
        "ref_logprobs": float("inf"),
    }
    wider = {
        name: torch.nn.functional.pad(getattr(rollouts, name), (left, right), value=filler)
        for name, filler in fillers.items()
    }
    return replace(rollouts, **wider)


@pytest.mark.parametrize(("left", "right"), [(5, 0), (0, 5), (3, 4)])
def test_padding_width(module, rollouts, expected, left, right):
    wider = padded(rollouts, left, right)
    with_denominators(module, wider)
    module.policy.zero_grad()
    loss = module.loss(wider)  # untrimmed
    loss.backward()
    gradient = {n: p.grad for n, p in module.policy.named_parameters()}
    torch.testing.assert_close((loss.detach(), gradient), expected, **CLOSE)


def test_padding_side(module, rollouts, expected):
    """Every row moved to the left edge: all padding on the right."""
    shifts = rollouts.attention_mask.long().argmax(1)
    assert shifts.max() > 0
    names = ("input_ids", "attention_mask", "completion_mask", "old_logprobs", "ref_logprobs")
    moved = {
        name: torch.stack(
            [row.roll(-int(s)) for row, s in zip(getattr(rollouts, name), shifts, strict=True)]
        )
        for name in names
    }
    left = replace(rollouts, **moved)
    assert left.attention_mask[:, 0].all()
    torch.testing.assert_close(loss_and_gradient(module, left, 2), expected, **CLOSE)


def test_values_at_masked_positions(module, rollouts, expected):
    poisoned = rollouts.select(torch.arange(12))
    outside = ~poisoned.completion_mask
    poisoned.old_logprobs[outside] = float("nan")
    poisoned.ref_logprobs[outside] = float("inf")
    poisoned.input_ids[~poisoned.attention_mask] = 11
    per_token = torch.where(outside, float("nan"), rollouts.advantages[:, None])
    poisoned.advantages = per_token
    torch.testing.assert_close(loss_and_gradient(module, poisoned, 2), expected, **CLOSE)


def test_rejected_microbatch_gives_zero(module, rollouts):
    """A correction can reject all tokens of a microbatch, and of a minibatch."""
    rollouts.completion_mask = torch.zeros_like(rollouts.completion_mask)
    loss, gradient = loss_and_gradient(module, rollouts, 2)
    assert loss == 0 and not any(g.any() for g in gradient.values())


def test_first_gradient_is_reinforce(folder, rollouts):
    """-sum(advantage * grad logprob) / tokens, each row alone, unpadded, without this package."""
    module = loaded(GRPO, folder, temperature=0.6)
    rollouts.old_logprobs = None
    _, gradient = loss_and_gradient(module, rollouts)
    model = load_policy(str(folder)).double()
    for ids, attended, counted, advantage in zip(
        rollouts.input_ids,
        rollouts.attention_mask,
        rollouts.completion_mask,
        rollouts.advantages,
        strict=True,
    ):
        row, scored = ids[attended], counted[attended]
        logits = model(input_ids=row[None]).logits[0, :-1] / 0.6
        picked = logits.log_softmax(-1).gather(-1, row[1:, None])[:, 0]
        loss = -advantage * picked[scored[1:]].sum() / rollouts.completion_mask.sum()
        loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, **CLOSE)


def test_entropy_has_a_gradient_only_with_the_bonus(folder, rollouts):
    rollouts.advantages = torch.zeros_like(rollouts.advantages)
    seen = {}
    for coefficient in (0.0, 0.1):
        module = loaded(GRPO, folder, temperature=0.6, entropy_coef=coefficient)
        batch = with_denominators(module, rollouts.select(torch.arange(12)))
        loss = module.loss(batch)
        assert batch.entropy.requires_grad == (coefficient > 0)
        loss.backward()
        seen[coefficient] = loss.item(), module.policy.lm_head.weight.grad.abs().max().item()
        mean = batch.entropy.sum().item() / batch.completion_mask.sum().item()
        assert module.logged["entropy"] == pytest.approx(mean) and mean > 0.1
        assert seen[coefficient][0] == pytest.approx(-coefficient * mean, abs=1e-12)
    assert seen[0.0][1] == 0 and seen[0.1][1] > 1e-5
