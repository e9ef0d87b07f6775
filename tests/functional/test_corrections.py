import math

import pytest
import torch

from rlsgd.functional.corrections import (
    CORRECTIONS,
    correction_weights,
    mismatch_metrics,
    validate_bounds,
    validate_correction,
)

MASK = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0]], dtype=torch.bool)
RATIOS = torch.tensor([[9.0, 0.4, 1.5, 3.0], [9.0, 0.8, 2.0, 9.0]], dtype=torch.float64)
# --- products: 1.8 and 1.6
BOUNDS = {"low": 0.5, "high": 1.7}


def weights_of(correction):
    """Log-probabilities outside the mask are nan."""
    sampler_logprobs = torch.full_like(RATIOS, -2.0)
    old_logprobs = torch.where(MASK, sampler_logprobs + RATIOS.log(), float("nan"))
    weights, kept = correction_weights(
        old_logprobs, sampler_logprobs, MASK, correction=correction, **BOUNDS
    )
    return weights[MASK].tolist(), kept[MASK].tolist(), weights, kept


def test_token_truncate():
    weights, kept, _, mask = weights_of("token-truncate")
    assert weights == pytest.approx([0.4, 1.5, 1.7, 0.8, 1.7])
    assert all(kept) and torch.equal(mask, MASK)


def test_token_mask():
    weights, kept, everywhere, mask = weights_of("token-mask")
    assert kept == [False, True, False, True, False]
    assert [w for w, k in zip(weights, kept, strict=True) if k] == pytest.approx([1.5, 0.8])
    assert not mask[~MASK].any() and torch.isfinite(everywhere).all()


def test_sequence_truncate():
    weights, kept, *_ = weights_of("sequence-truncate")
    assert weights == pytest.approx([1.7, 1.7, 1.7, 1.6, 1.6]) and all(kept)


def test_sequence_mask():
    weights, kept, *_ = weights_of("sequence-mask")
    assert kept == [False, False, False, True, True]
    assert weights[3:] == pytest.approx([1.6, 1.6])


def test_bounds_belong_to_what_is_kept():
    logprobs = torch.tensor([[0.5, 2.0]], dtype=torch.float64).log()
    mask = torch.ones(1, 2, dtype=torch.bool)
    options = {"correction": "token-mask", "low": 0.5, "high": 2.0}
    _, kept = correction_weights(logprobs, torch.zeros_like(logprobs), mask, **options)
    assert kept.all()


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_sampler_that_agrees_is_left_alone(correction):
    logprobs = torch.full(MASK.shape, -1.3)
    weights, kept = correction_weights(logprobs, logprobs, MASK, correction=correction, **BOUNDS)
    assert torch.equal(weights, torch.ones(MASK.shape)) and torch.equal(kept, MASK)


def test_weights_undo_the_sampler_in_expectation():
    """Over all tokens: sum_sampler p_s * w * A * grad logp = sum_policy p * A * grad logp."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    sampler = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    advantages = torch.randn(5, generator=generator, dtype=torch.float64)
    logprobs = logits.log_softmax(0)
    weights, _ = correction_weights(
        logprobs.detach()[:, None],
        sampler[:, None],
        torch.ones(5, 1, dtype=torch.bool),
        correction="token-truncate",
        low=0.0,
        high=math.inf,
    )
    corrected = (sampler.exp() * weights[:, 0] * advantages * logprobs).sum()
    (got,) = torch.autograd.grad(corrected, logits, retain_graph=True)
    true_value = (logprobs.exp() * advantages).sum()
    (expected,) = torch.autograd.grad(true_value, logits, retain_graph=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)
    (biased,) = torch.autograd.grad((sampler.exp() * advantages * logprobs).sum(), logits)
    assert (biased - expected).abs().max() > 1e-2


def test_metrics():
    # --- ratios 0.5, 1, 2; sum 3.5, squares 0.25 + 1 + 4
    metrics = mismatch_metrics(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).log())
    ln2 = math.log(2)
    expected = {
        "sampling/sampling_logp_difference/mean": 2 * ln2 / 3,
        "sampling/sampling_logp_difference/max": ln2,
        "sampling/importance_sampling_ratio/min": 0.5,
        "sampling/importance_sampling_ratio/mean": 3.5 / 3,
        "sampling/importance_sampling_ratio/max": 2.0,
        "sampling/kl": (0.5 - 1 + ln2 + 2 - 1 - ln2) / 3,
        "sampling/effective_sample_size": 3.5**2 / (3 * 5.25),
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)


def test_flags():
    with pytest.raises(ValueError, match=r"^correction 'tis' is unknown; .*token-mask"):
        validate_correction("tis")
    for low, high in ((1.1, 2.0), (0.5, 0.9), (-0.1, 2.0)):
        with pytest.raises(ValueError, match=r"^low .* and high .* enclose 1"):
            validate_bounds(low, high)
