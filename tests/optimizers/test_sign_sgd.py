"""SignSGD by hand, and against the formula on many weights."""

import pytest
import torch
from torch import nn

from rlsgd.optimizers import SignSGD


def weight_of(values, gradient):
    weight = nn.Parameter(torch.tensor(values))
    weight.grad = torch.tensor(gradient)
    return weight


def test_one_step_by_hand():
    weight = weight_of([1.0, 1.0, 1.0, 1.0], [3.0, -1e-30, 0.0, -0.0])
    untouched = nn.Parameter(torch.ones(1))
    optimizer = SignSGD([weight, untouched], lr=0.25)
    optimizer.step()
    assert weight.tolist() == [0.75, 1.25, 1.0, 1.0]
    assert untouched.tolist() == [1.0] and not optimizer.state


def test_weight_decay_is_decoupled_and_reads_the_old_weight():
    weight = weight_of([4.0, -4.0, 4.0], [1.0, 1.0, 0.0])
    SignSGD([weight], lr=0.5, weight_decay=0.25).step()
    # 4 - 0.5 - 0.5 * 0.25 * 4, -4 - 0.5 + 0.5, 4 - 0.5
    assert weight.tolist() == [3.0, -4.0, 3.5]


def test_momentum_takes_the_sign_of_the_average():
    weight = weight_of([0.0, 0.0], [1.0, 1.0])
    optimizer = SignSGD([weight], lr=1.0, momentum=0.75)
    seen = []
    # averages of the second weight: 0.25, then 0.75 * 0.25 - 0.25 * 0.5, then -0.25 * 0.5 more
    for gradient in ([1.0, 1.0], [1.0, -0.5], [1.0, -0.5]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        seen.append((weight.tolist(), optimizer.state[weight]["momentum_buffer"][1].item()))
    assert seen == [
        ([-1.0, -1.0], 0.25),
        ([-2.0, -2.0], 0.0625),
        ([-3.0, -1.0], -0.078125),
    ]


def test_a_checkpoint_continues_the_run(tmp_path):
    def steps(weights, optimizer, numbers):
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()

    def start():
        weights = [nn.Parameter(torch.ones(50)), nn.Parameter(torch.ones(3, 4))]
        return weights, SignSGD(weights, lr=2.0**-6, momentum=0.9, weight_decay=0.5)

    whole, optimizer = start()
    steps(whole, optimizer, range(4))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed, other = start()
    for ours, theirs in zip(resumed, whole, strict=True):
        ours.data.copy_(theirs)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    steps(whole, optimizer, range(4, 8))
    steps(resumed, other, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_the_closure_is_evaluated_and_returned():
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = SignSGD([weight], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert float(optimizer.step(closure)) == 4.0
    assert weight.tolist() == [1.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr -1.0 must not be negative"),
        ({"momentum": 1.0}, "momentum 1.0 must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "weight_decay -0.1 must not be negative"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^--model.optimizer.init_args.{message}"):
        SignSGD([nn.Parameter(torch.ones(1))], **{"lr": 1.0} | settings)
