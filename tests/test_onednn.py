from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlsgd.models import onednn
from rlsgd.models.loading import load_policy
from rlsgd.models.onednn import use_onednn
from tests.test_shared_prompts import make_batch, scores_and_gradients


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the products that oneDNN computes."""
    seen: list[tuple[int, ...]] = []
    original = onednn._product

    def counted(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append((*left.shape, len(right)))
        return original(left, right, bias)

    monkeypatch.setattr(onednn, "_product", counted)
    return seen


@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (1, 1, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_of_a_layer(products: Any, shape: tuple[int, ...], bias: bool):
    plain = nn.Linear(12, 9, bias=bias)
    fast = nn.Linear(12, 9, bias=bias)
    fast.load_state_dict(plain.state_dict())
    use_onednn(fast)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    results = []
    for layer in (plain, fast):
        output = layer(inputs.transpose(0, 1) if len(shape) == 3 else inputs)
        grads = torch.autograd.grad(output.square().sum(), [inputs, *layer.parameters()])
        results.append([output, *grads])
    assert len(products) == 2  # forward, and the gradient of the inputs
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_frozen_layer_and_frozen_inputs(products: Any):
    layer = nn.Linear(4, 3)
    use_onednn(layer)
    inputs = torch.ones(2, 4)
    layer(inputs).sum().backward()  # the inputs need no gradient
    assert len(products) == 1 and layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.full((3, 4), 2.0))
    layer.requires_grad_(False)
    inputs.requires_grad_()
    layer(inputs).sum().backward()
    assert len(products) == 3
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(2, 4))


def test_other_dtypes_and_autocast_stay_as_they_are(products: Any):
    layer = nn.Linear(4, 3)
    use_onednn(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.ones(2, 4)).dtype == torch.bfloat16
    assert layer.double()(torch.ones(2, 4).double()).dtype == torch.float64
    assert layer.float()(torch.ones(0, 4)).shape == (0, 3)
    assert not products


def test_a_whole_model(tiny_qwen3: Path, products: Any):
    plain: Any = load_policy(str(tiny_qwen3))
    fast: Any = load_policy(str(tiny_qwen3))
    use_onednn(fast)
    expected = scores_and_gradients(plain, make_batch(left=1))
    assert not products
    found = scores_and_gradients(fast, make_batch(left=1))
    assert len(products) >= 2 * 2 * 7  # two layers of seven products, forward and backward
    tolerance = 200 * torch.finfo(torch.float32).eps  # as for shared prompts
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
    for one, other in zip(found[2], expected[2], strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale)


def test_a_torch_without_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"--model.onednn true: .* has no oneDNN"):
        use_onednn(nn.Linear(4, 3))
