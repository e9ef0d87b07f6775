"""Rates of equal first-order gain: by hand, against real steps, and through the command."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from rlsgd.cli.main import main
from rlsgd.functional.first_order import matched_rate, noise_of_products
from rlsgd.functional.noise_scale import gradient_noise
from rlsgd.optimizers import SignSGD
from rlsgd.optimizers.shadow import displacement

GRADIENT = {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([[2.0]])}


def shadow(make, gradients, clip=None):
    parameters = {name: nn.Parameter(torch.ones_like(g)) for name, g in GRADIENT.items()}
    return displacement(make, parameters, gradients, clip)


def gain(moved):
    return -float(sum((moved[name] * g).sum() for name, g in GRADIENT.items()))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (partial(torch.optim.SGD, lr=0.5), 3 * 14),  # ||g||^2 a step
        (partial(SignSGD, lr=2.0), 3 * 6),  # its 1-norm
        (partial(torch.optim.SGD, lr=0.5, momentum=0.5), (1 + 1.5 + 1.75) * 14),
        (partial(SignSGD, lr=0.1, weight_decay=0.5), 3 * 6),  # decay is no matter of the gradient
    ],
)
def test_three_equal_gradients_by_hand(make, expected):
    assert gain(shadow(make, [GRADIENT] * 3)) == pytest.approx(expected, rel=1e-6)


def test_clipping_is_the_trainers():
    clip = partial(torch.nn.utils.clip_grad_norm_, max_norm=7.0**0.5)
    moved = shadow(partial(torch.optim.SGD, lr=1.0), [GRADIENT] * 2, clip)
    assert gain(moved) == pytest.approx(2 * 14 / 2**0.5, rel=1e-5)
    assert GRADIENT["a"].tolist() == [3.0, -1.0]  # a gradient that comes again is as it was


@pytest.mark.parametrize(
    "kind", [torch.optim.AdamW, torch.optim.RMSprop, partial(torch.optim.SGD, momentum=0.9)]
)
def test_a_small_rate_moves_real_weights_by_its_share(kind):
    torch.manual_seed(0)
    gradients = [{name: torch.randn_like(g) for name, g in GRADIENT.items()} for _ in range(20)]
    moved = shadow(partial(kind, lr=1.0), gradients)
    weight = nn.Parameter(torch.tensor([5.0, 7.0], dtype=torch.float64))
    optimizer = kind([weight], lr=1e-6)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for gradient in gradients:
        weight.grad = gradient["a"].double()
        optimizer.step()
    real = (weight.detach() - torch.tensor([5.0, 7.0])) / 1e-6
    torch.testing.assert_close(moved["a"].double(), real, rtol=1e-5, atol=1e-5)


def test_a_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match="SGD has the rate 0"):
        shadow(partial(torch.optim.SGD, lr=0.0), [GRADIENT])


def test_noise_of_whole_steps_equals_that_of_microbatches_of_one_step():
    """Two microbatches of n rows are two steps of n rows at the same weights."""
    torch.manual_seed(1)
    first, second = torch.randn(2, 50, dtype=torch.float64)
    both = torch.stack([first, second])
    found = noise_of_products(both @ both.T, rows=8)
    shares = [float((part / 2).square().sum()) for part in both]
    known = gradient_noise(shares, [8, 8], float(both.mean(0).square().sum()))
    assert found.trace == pytest.approx(known.trace, rel=1e-12)
    assert found.squared_mean == pytest.approx(known.squared_mean, rel=1e-9)
    with pytest.raises(ValueError, match="two steps"):
        noise_of_products(both[:1] @ both[:1].T, rows=8)


def test_matched_rates():
    assert matched_rate(1e-5, 700.0, 3.5) == pytest.approx(2e-3)
    assert matched_rate(1e-5, -1.0, 3.5) is None and matched_rate(1e-5, 1.0, 0.0) is None


def test_the_command_finds_its_own_rate_again(tmp_path, monkeypatch, capsys):
    """Of a config with plain SGD the rate of plain SGD is the config's; and nothing is left."""
    monkeypatch.chdir(tmp_path)
    small = ["--data.prompts_per_epoch=8", "--data.val_problems=4", "--pilots=4", "--steps=30"]
    arguments = ["rates", "--config", "grpo_embedded", *small, "--json=rates.json"]
    assert main([*arguments, "--optimizer=lion_pytorch.Lion"]) == 0
    record = json.loads((tmp_path / "rates.json").read_text())
    assert (record["optimizer"], record["rate"], record["rows"]) == ("SGD", 3e-3, 64)
    assert (record["steps"], record["pilot_steps"], record["clipping"]) == (30, 4, 1.0)
    rates = {name: found["rate"] for name, found in record["rates"].items()}
    assert rates["SGD"] == 3e-3 and record["rates"]["SGD"]["halves"] == [3e-3, 3e-3]
    assert rates["SGD, momentum 0.9"] < 0.2 * rates["SGD"]  # nearly a tenth after 30 steps
    assert rates["SignSGD"] < 0.1 * rates["SGD"] and "lion_pytorch.Lion" in rates
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rates.json"]
    assert "what SGD at 0.003 does" in capsys.readouterr().out
