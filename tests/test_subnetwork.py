"""Training only the weights that an earlier run changed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rlsgd.core.checkpoints import LazyTensors
from rlsgd.models.subnetwork import Subnetwork, require_no_weight_decay


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(40, 30, bias=False)
        self.second = nn.Linear(30, 5)

    def forward(self, x):
        return self.second(self.first(x).tanh())


@pytest.fixture
def saved(tmp_path: Path):
    """Base and tuned files of a tiny model; the tuned one differs in every third weight."""
    torch.manual_seed(0)
    model = Tiny().bfloat16().float()
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    tuned = {name: p.clone() for name, p in base.items()}
    for weight in tuned.values():
        weight.view(-1)[::3] += 0.5
        weight.view(-1)[1::3] *= 1 + 2**-12  # too little for the bfloat16 view
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    return model, base, tmp_path


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for step in range(steps):
        inputs = torch.randn(8, 40, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "optimizer", [lambda p: torch.optim.SGD(p, 0.01, 0.9), lambda p: torch.optim.Adam(p, 0.01)]
)
def test_the_changed_weights_move_and_no_other(saved, optimizer):
    model, base, folder = saved
    subnetwork = Subnetwork(tuned=str(folder / "tuned.safetensors"))
    share = subnetwork.restrict(model, LazyTensors.open(folder / "base.safetensors"))
    # --- Hand calculation --- every third of 1200, 150 and 5 weights: 400 + 50 + 2
    assert share == 452 / 1355
    train(model, optimizer(model.parameters()))
    for name, weight in model.named_parameters():
        moved = (weight.detach() != base[name]).flatten()
        assert moved[::3].all(), name
        assert not moved[1::3].any() and not moved[2::3].any(), name


def test_the_control_trains_as_many_weights_of_each_tensor_elsewhere(saved):
    model, base, folder = saved
    control = Subnetwork(tuned=str(folder / "tuned.safetensors"), shuffled=True, seed=3)
    share = control.restrict(model, LazyTensors.open(folder / "base.safetensors"))
    assert share == 452 / 1355
    train(model, torch.optim.SGD(model.parameters(), 0.01))
    moved = (model.first.weight.detach() != base["first.weight"]).flatten()
    assert moved.sum() == 400
    # chance puts a third of them on the third that the earlier run changed: 133 +- 4 deviations
    assert abs(int(moved[::3].sum()) - 400 / 3) < 4 * (400 / 3 * (2 / 3) * (2 / 3)) ** 0.5


def test_another_model_is_refused(saved):
    model, _, folder = saved
    save_file({"first.weight": torch.zeros(30, 41)}, folder / "other.safetensors")
    other = Subnetwork(tuned=str(folder / "other.safetensors"))
    with pytest.raises(ValueError, match=r"--model.subnetwork.tuned .*tuned model has no first"):
        other.restrict(model, LazyTensors.open(folder / "base.safetensors"))


def test_a_missing_folder_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"--model.subnetwork.tuned .*absent does not exist"):
        Subnetwork(tuned=str(tmp_path / "absent"))


def test_weight_decay_is_refused(saved):
    model, *_ = saved
    require_no_weight_decay(torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match=r"weight_decay must be 0 with --model\.subnetwork"):
        require_no_weight_decay(torch.optim.AdamW(model.parameters(), 0.1))
