import math

import pytest
import torch

from rlsgd.optimizers.schedulers import WarmupCosine, warmup_cosine


def rates(steps, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = WarmupCosine(optimizer, **options)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_rates_by_hand():
    # warmup 1/2, 1; then cosines of 60, 120 and 180 degrees between peak 1 and floor 0.2
    expected = [0.5, 1.0, 0.2 + 0.8 * 0.75, 0.2 + 0.8 * 0.25, 0.2, 0.2, 0.2]
    found = rates(7, total_steps=5, warmup_steps=2, final_fraction=0.2)
    assert found == pytest.approx([2 * share for share in expected], rel=1e-12)


def test_without_warmup_the_first_step_is_at_the_peak():
    found = rates(3, total_steps=3, final_fraction=0.0)
    assert found == pytest.approx([2.0, 1.0, 0.0], abs=1e-12)


def test_it_is_torchs_cosine_after_the_warmup():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90, eta_min=0.1)
    for step in range(9, 100):
        share = warmup_cosine(step, warmup_steps=10, total_steps=100, final_fraction=0.1)
        assert math.isclose(share, reference.get_last_lr()[0], rel_tol=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"total_steps": 5, "warmup_steps": 5}, "warmup_steps 5"),
        ({"total_steps": 5, "warmup_steps": -1}, "warmup_steps -1"),
        ({"total_steps": 5, "final_fraction": 1.5}, "final_fraction"),
    ],
)
def test_wrong_values_are_refused(options, flag):
    with pytest.raises(ValueError, match=rf"--model.lr_scheduler.init_args.{flag}"):
        rates(1, **options)
