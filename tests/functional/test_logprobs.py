import math

import pytest
import torch

from rlsgd.functional.logprobs import policy_ratio, token_entropy, token_logprobs

# exp(logits) = 1, 2, 5: probabilities 1/8, 2/8, 5/8.
LOGITS = torch.tensor([0.0, math.log(2), math.log(5)], dtype=torch.float64)


def test_token_logprobs_by_hand():
    logits = LOGITS.expand(2, 3, 3) + torch.tensor([[0.0], [100.0], [-50.0]])  # shift-invariant
    targets = torch.tensor([[0, 1, 2], [2, 1, 0]])
    by_hand = torch.tensor([[1 / 8, 2 / 8, 5 / 8], [5 / 8, 2 / 8, 1 / 8]], dtype=torch.float64)
    torch.testing.assert_close(token_logprobs(logits, targets), by_hand.log(), rtol=0, atol=2e-14)


def test_temperature_divides_the_logits():
    # At temperature 0.5 the weights are squared: 1, 4, 25 of 30; at 2 square roots.
    targets = torch.tensor([0, 1, 2])
    for temperature, weights in ((0.5, [1.0, 4.0, 25.0]), (2.0, [1.0, 2**0.5, 5**0.5])):
        expected = torch.tensor(weights, dtype=torch.float64)
        expected = expected / expected.sum()
        actual = token_logprobs(LOGITS.expand(3, 3), targets, temperature=temperature)
        torch.testing.assert_close(actual, expected.log(), rtol=0, atol=1e-15)
        entropy = token_entropy(LOGITS, temperature=temperature)
        torch.testing.assert_close(entropy, -(expected * expected.log()).sum(), rtol=0, atol=1e-15)


def test_gradient_is_onehot_minus_softmax_over_temperature():
    logits = LOGITS.clone().requires_grad_()
    token_logprobs(logits, torch.tensor(1), temperature=2.0).backward()
    softmax = torch.softmax(LOGITS / 2.0, dim=-1)
    expected = (torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64) - softmax) / 2.0
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-15)


def test_bfloat16_logits_are_scored_in_float32():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 1000, generator=generator).mul(5).bfloat16()
    targets = torch.tensor([0, 10, 500, 999])
    logprobs = token_logprobs(logits, targets, temperature=0.7)
    expected = (logits.double() / 0.7).log_softmax(-1)[torch.arange(4), targets]
    assert logprobs.dtype == torch.float32
    # Rounding of float32 at magnitude ~30; a bfloat16 result would be off by 1e-1.
    torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=1e-5)
    entropy = -(expected_probs := (logits.double() / 0.7).softmax(-1)) * expected_probs.log()
    torch.testing.assert_close(
        token_entropy(logits, temperature=0.7).double(), entropy.sum(-1), rtol=0, atol=1e-5
    )


def test_entropy_limits():
    assert token_entropy(torch.zeros(7)).item() == pytest.approx(math.log(7), rel=1e-6)
    assert token_entropy(torch.tensor([0.0, 1e4])).item() == 0.0


def test_impossible_tokens_carry_no_entropy_and_no_gradient():
    logits = torch.tensor([0.0, -torch.inf, 0.0], requires_grad=True)
    entropy = token_entropy(logits)
    entropy.backward()
    assert entropy.item() == pytest.approx(math.log(2), rel=1e-6)
    torch.testing.assert_close(logits.grad, torch.zeros(3), rtol=0, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize(
    "score", [token_entropy, lambda x, **kw: token_logprobs(x, torch.tensor(0), **kw)]
)
def test_temperature_must_be_positive(score, temperature):
    with pytest.raises(ValueError, match=r"^temperature"):
        score(LOGITS, temperature=temperature)


def test_policy_ratio_by_hand():
    logprobs = torch.tensor([[math.log(0.5), 0.0, 1e4]], dtype=torch.float64, requires_grad=True)
    old_logprobs = torch.tensor([[math.log(0.25), float("nan"), -1e4]], dtype=torch.float64)
    ratio = policy_ratio(logprobs, old_logprobs, torch.tensor([[True, False, False]]))
    ratio.sum().backward()
    by_hand = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(ratio.detach(), by_hand, rtol=1e-15, atol=0)
    # d ratio / d logprob = ratio where unmasked.
    by_hand = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(logprobs.grad, by_hand, rtol=1e-15, atol=0)
