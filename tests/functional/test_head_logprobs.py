import pytest
import torch
from torch import Tensor

from rlsgd.functional import head_logprobs as module
from rlsgd.functional.head_logprobs import head_logprobs
from rlsgd.functional.logprobs import token_entropy, token_logprobs

TOKENS, WIDTH, VOCABULARY = 7, 5, 11


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for size in ((TOKENS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    )
    return hidden, weight, bias, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


def objective(logprobs: Tensor, entropy: Tensor | None) -> Tensor:
    slopes = torch.linspace(-1, 2, TOKENS, dtype=logprobs.dtype)
    return (logprobs * slopes).sum() + (0.0 if entropy is None else (entropy**2 * slopes).sum())


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("tokens_at_a_time", [1, 3, 7, 100])
def test_values_and_gradients_are_those_of_whole_logits(
    tokens_at_a_time: int, temperature: float, with_entropy: bool, with_bias: bool
):
    hidden, weight, bias, targets = problem()
    inputs = [hidden, weight, bias] if with_bias else [hidden, weight]
    found = head_logprobs(
        hidden,
        weight,
        targets,
        bias=bias if with_bias else None,
        temperature=temperature,
        with_entropy=with_entropy,
        logits_bytes=4 * VOCABULARY * tokens_at_a_time,
    )
    logits = hidden @ weight.mT + (bias if with_bias else 0.0)
    logprobs = token_logprobs(logits, targets, temperature=temperature)
    entropy = token_entropy(logits, temperature=temperature) if with_entropy else None
    torch.testing.assert_close(found[0], logprobs, rtol=0, atol=1e-13)
    assert (found[1] is None) == (entropy is None)
    if found[1] is not None:
        torch.testing.assert_close(found[1], entropy, rtol=0, atol=1e-13)
    actual = torch.autograd.grad(objective(*found), inputs)
    expected = torch.autograd.grad(objective(logprobs, entropy), inputs)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_an_entropy_alone_has_its_gradient():
    hidden, weight, _, targets = problem()
    _, entropy = head_logprobs(hidden, weight, targets, with_entropy=True)
    assert entropy is not None
    expected = token_entropy(hidden @ weight.mT)
    for one, other in zip(
        torch.autograd.grad(entropy.sum(), [hidden, weight]),
        torch.autograd.grad(expected.sum(), [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_an_impossible_token_has_no_entropy_and_no_gradient():
    hidden, weight, bias, _ = problem()
    with torch.no_grad():
        bias[3] = -torch.inf
    targets = torch.zeros(TOKENS, dtype=torch.long)
    logprobs, entropy = head_logprobs(hidden, weight, targets, bias=bias, with_entropy=True)
    assert entropy is not None
    kept = [token for token in range(VOCABULARY) if token != 3]
    logits = hidden @ weight[kept].mT + bias[kept]
    torch.testing.assert_close(entropy, token_entropy(logits), rtol=0, atol=1e-13)
    (grad,) = torch.autograd.grad(objective(logprobs, entropy), [bias])
    assert grad.isfinite().all() and grad[3] == 0 and grad[0] != 0


def test_no_more_logits_exist_than_asked_for(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    def spy(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(len(inputs))
        return torch.nn.functional.linear(inputs, weight, bias)

    monkeypatch.setattr(module, "linear", spy)
    hidden, weight, _, targets = problem()
    bytes_of_three = 4 * VOCABULARY * 3
    logprobs, _ = head_logprobs(hidden, weight, targets, logits_bytes=bytes_of_three)
    assert seen == [3, 3, 1]
    logprobs.sum().backward()
    assert seen == [3, 3, 1] * 2  # again in the backward
    logprobs, _ = head_logprobs(hidden, weight, targets, logits_bytes=4 * VOCABULARY * TOKENS)
    logprobs.sum().backward()
    assert seen[6:] == [7]  # one chunk is kept


def test_float32_sums_over_chunks_of_bfloat16_products():
    hidden, weight, _, targets = problem(torch.bfloat16)
    logprobs, entropy = head_logprobs(
        hidden, weight, targets, with_entropy=True, logits_bytes=4 * VOCABULARY
    )
    assert entropy is not None and logprobs.dtype == entropy.dtype == torch.float32
    logits = hidden @ weight.mT  # in bfloat16, as the model's own head computes them
    torch.testing.assert_close(logprobs, token_logprobs(logits, targets), rtol=0, atol=1e-6)
    (grad,) = torch.autograd.grad(objective(logprobs, None), [weight])
    assert grad.dtype == torch.bfloat16
    p = torch.zeros_like(logits, dtype=torch.float64).scatter_(1, targets[:, None], 1.0)
    slopes = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)[:, None]
    of_logits = ((p - logits.double().softmax(1)) * slopes).bfloat16().double()
    # one rounding of each product and one of the result, of numbers up to 5: 2^-8 of each
    expected = of_logits.mT @ hidden.double()
    torch.testing.assert_close(grad.double(), expected, rtol=2**-8, atol=TOKENS * 2**-8 * 0.5)


def test_autocast_decides_the_dtype_of_the_products():
    hidden, weight, _, targets = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, _ = head_logprobs(hidden, weight, targets)
        whole = token_logprobs(torch.nn.functional.linear(hidden, weight), targets)
    assert torch.equal(logprobs, whole)
    grads = torch.autograd.grad(logprobs.sum(), [hidden, weight])
    expected = torch.autograd.grad(whole.sum(), [hidden, weight])
    for one, other in zip(grads, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-8)


def test_no_tokens_at_all():
    hidden, weight, _, targets = problem()
    logprobs, entropy = head_logprobs(hidden[:0], weight, targets[:0], with_entropy=True)
    assert entropy is not None and logprobs.shape == entropy.shape == (0,)
    assert not torch.autograd.grad(logprobs.sum(), [weight])[0].any()
