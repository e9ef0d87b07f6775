import math

import pytest
import torch

from rlsgd.functional.kl import KL_ESTIMATORS, kl_penalty

POLICY_LOGITS = torch.tensor([0.1, -0.7, 1.3, 0.4, -1.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.9, 0.2, -0.5, 0.3, -0.4], dtype=torch.float64).log_softmax(-1)
SAMPLER = torch.tensor([-0.3, 0.8, 0.2, -0.9, 0.5], dtype=torch.float64).log_softmax(-1)
EVERY_TOKEN = torch.ones(5, 1, dtype=torch.bool)


def reverse_kl(logprobs):
    return (logprobs.exp() * (logprobs - REFERENCE)).sum()


def forward_kl(logprobs):
    return (REFERENCE.exp() * (REFERENCE - logprobs)).sum()


def nothing(logprobs):
    return logprobs.sum() * 0


def exact(objective):
    logits = POLICY_LOGITS.clone().requires_grad_()
    value = objective(logits.log_softmax(-1))
    value.backward()
    return value.detach(), logits.grad


def expectation(estimator, sampler=None):
    """Value and gradient of the estimator, each averaged exactly over the five tokens.

    Each token is a row; its weight is its probability under the sampling policy, a constant.
    """
    logits = POLICY_LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    weights = (logprobs if sampler is None else sampler).detach().exp()
    per_token = kl_penalty(
        logprobs[:, None],
        REFERENCE[:, None],
        EVERY_TOKEN,
        estimator=estimator,
        old_logprobs=None if sampler is None else sampler[:, None],
    )
    mean = (weights * per_token[:, 0]).sum()
    mean.backward()
    return mean.detach(), logits.grad


GRADIENT_OF = {
    "k1": nothing,
    "k2": reverse_kl,
    "k3": forward_kl,
    "k3-corrected": reverse_kl,
}


def test_the_two_kls_have_different_gradients_here():
    assert (exact(reverse_kl)[1] - exact(forward_kl)[1]).abs().max() > 0.05
    assert exact(reverse_kl)[1].abs().max() > 0.05


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_expected_gradient_by_enumeration(estimator):
    _, gradient = expectation(estimator)
    torch.testing.assert_close(gradient, exact(GRADIENT_OF[estimator])[1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("estimator", ["k1", "k3", "k3-corrected"])
def test_expected_value_is_the_reverse_kl(estimator):
    value, _ = expectation(estimator)
    torch.testing.assert_close(value, exact(reverse_kl)[0], rtol=0, atol=1e-15)


def test_corrected_estimator_is_exact_for_tokens_of_another_policy():
    value, gradient = expectation("k3-corrected", sampler=SAMPLER)
    expected_value, expected_gradient = exact(reverse_kl)
    torch.testing.assert_close(value, expected_value, rtol=0, atol=1e-15)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-15)


def test_uncorrected_k3_is_not():
    value, gradient = expectation("k3", sampler=SAMPLER)
    expected_value, expected_gradient = exact(reverse_kl)
    assert (value - expected_value).abs() > 0.01
    assert (gradient - expected_gradient).abs().max() > 0.05


@pytest.mark.parametrize(
    ("estimator", "by_hand"),
    [
        # The policy gives the token 0.5, the reference 0.25: d = log(1/2).
        ("k1", math.log(2)),
        ("k2", math.log(2) ** 2 / 2),
        ("k3", 0.5 - 1 + math.log(2)),
        # The sampler gave it 0.2: ratio 2.5.
        ("k3-corrected", 2.5 * (0.5 - 1 + math.log(2))),
    ],
)
def test_estimators_by_hand(estimator, by_hand):
    penalty = kl_penalty(
        torch.tensor([[0.5]], dtype=torch.float64).log(),
        torch.tensor([[0.25]], dtype=torch.float64).log(),
        torch.tensor([[True]]),
        estimator=estimator,
        old_logprobs=torch.tensor([[0.2]], dtype=torch.float64).log(),
    )
    assert penalty.item() == pytest.approx(by_hand, rel=1e-14)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_zero_where_policy_is_the_reference(estimator):
    logprobs = torch.tensor([[-0.3, -2.0, -11.5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    penalty = kl_penalty(logprobs, logprobs.clone(), mask, estimator=estimator)
    assert torch.equal(penalty, torch.zeros(1, 3))


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 1e4])
def test_masked_tokens_reach_neither_value_nor_gradient(estimator, filler):
    mask = torch.tensor([[False, True]])
    logprobs = torch.tensor([[0.0, -1.0]], requires_grad=True)
    penalty = kl_penalty(
        logprobs,
        torch.tensor([[filler, -1.5]]),
        mask,
        estimator=estimator,
        old_logprobs=torch.tensor([[-filler, -0.8]]),
    )
    penalty.sum().backward()
    assert penalty[0, 0].item() == 0
    assert logprobs.grad[0, 0].item() == 0
    assert torch.isfinite(logprobs.grad).all() and logprobs.grad[0, 1] != 0


def test_unknown_estimator_names_the_flag_and_the_choices():
    with pytest.raises(ValueError, match=r"^kl_estimator 'k4'.*k1, k2, k3, k3-corrected"):
        kl_penalty(REFERENCE, REFERENCE, EVERY_TOKEN, estimator="k4")
