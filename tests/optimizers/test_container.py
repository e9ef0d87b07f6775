"""Two optimizers in a container do exactly what they do apart, by hand and inside a Trainer."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from rlsgd.callbacks.memory import closed_form_bytes
from rlsgd.optimizers import OptimizerContainer

RATES = {"sgd": 0.1, "adamw": 0.01}


class TwoParts(LightningModule):
    """A policy and a critic in miniature; inputs are fixed by the batch index."""

    def __init__(self, joined=True, scheduled=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.policy, self.value = nn.Linear(4, 3), nn.Linear(3, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.joined, self.scheduled = joined, scheduled

    def loss(self, index):
        generator = torch.Generator().manual_seed(100 + index)
        inputs = torch.randn(5, 4, generator=generator)
        return self.value(self.policy(inputs).tanh()).square().mean()

    def parts(self):
        sgd = SGD(self.policy.parameters(), lr=RATES["sgd"])
        adamw = AdamW(self.value.parameters(), lr=RATES["adamw"], weight_decay=0.1)
        return [sgd, adamw]

    def configure_optimizers(self):
        container = OptimizerContainer(self.parts())
        if not self.scheduled:
            return container
        halved = LambdaLR(container, lambda epoch: 0.5**epoch)
        return {"optimizer": container, "lr_scheduler": halved}

    def training_step(self, batch, batch_idx):
        return self.loss(self.global_step)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(3, 1))


def steps_apart(model, steps, schedule=lambda step: 1.0):
    parts = model.parts()
    for step in range(steps):
        for part, rate in zip(parts, RATES.values(), strict=True):
            part.param_groups[0]["lr"] = rate * schedule(step)
        model.zero_grad()
        model.loss(step).backward()
        for part in parts:
            part.step()
    return model


def steps_joined(model, container, steps, first=0):
    for step in range(first, first + steps):
        container.zero_grad()
        model.loss(step).backward()
        container.step()


def assert_same_weights(left, right):
    for (name, ours), theirs in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def fit(model, epochs, tmp_path, **flags):
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, **flags)
    return trainer


def test_steps_equal_those_of_the_parts():
    apart, joined = steps_apart(TwoParts(), 5), TwoParts()
    steps_joined(joined, OptimizerContainer(joined.parts()), 5)
    assert_same_weights(apart, joined)
    assert not torch.equal(joined.policy.weight, TwoParts().policy.weight)


def test_closure_is_evaluated_once_and_returned():
    model, calls = TwoParts(), []
    container = OptimizerContainer(model.parts())

    def closure():
        container.zero_grad()
        loss = model.loss(0)
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():
        returned = container.step(closure)
    assert calls == [returned]
    assert_same_weights(model, steps_apart(TwoParts(), 1))


def test_state_dict_round_trip_continues_the_run(tmp_path):
    model = TwoParts()
    container = OptimizerContainer(model.parts())
    steps_joined(model, container, 3)
    torch.save(container.state_dict(), tmp_path / "optimizer.pt")
    resumed = copy.deepcopy(model)
    other = OptimizerContainer(resumed.parts())
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    steps_joined(model, container, 3, first=3)
    steps_joined(resumed, other, 3, first=3)
    assert_same_weights(model, resumed)
    assert_same_weights(model, steps_apart(TwoParts(), 6))
    other.param_groups[1]["lr"] = 7.0
    assert other.optimizers[1].param_groups[0]["lr"] == 7.0


def test_state_dict_has_the_format_of_one_optimizer():
    model = TwoParts()
    container = OptimizerContainer(model.parts())
    steps_joined(model, container, 1)
    state_dict = container.state_dict()
    assert [group["params"] for group in state_dict["param_groups"]] == [[0, 1], [2, 3]]
    assert sorted(state_dict["state"]) == [2, 3]  # of the critic's AdamW alone
    moment = state_dict["state"][2]["exp_avg"]
    assert torch.equal(moment, 0.1 * model.value.weight.grad)


def test_further_entries_of_a_state_dict_survive():
    class Counting(SGD):
        count = 0

        def state_dict(self):
            return {**super().state_dict(), "count": self.count}

        def load_state_dict(self, state_dict):
            self.count = state_dict["count"]
            super().load_state_dict({k: v for k, v in state_dict.items() if k != "count"})

    def container():
        return OptimizerContainer([Counting([nn.Parameter(torch.ones(1))], lr=i) for i in (1, 2)])

    left, right = container(), container()
    left.optimizers[0].count, left.optimizers[1].count = 3, 4
    right.load_state_dict(left.state_dict())
    assert [part.count for part in right.optimizers] == [3, 4]


def test_checkpoint_of_other_optimizers_is_refused():
    model = TwoParts()
    container = OptimizerContainer(model.parts())
    with pytest.raises(ValueError, match="holds 1 parameter groups and this run has 2"):
        container.load_state_dict(SGD(model.parameters(), lr=1.0).state_dict())


def test_parameters_belong_to_one_optimizer():
    model = TwoParts()
    with pytest.raises(ValueError, match="more than one parameter group"):
        OptimizerContainer([SGD(model.parameters(), lr=1.0), SGD(model.parameters(), lr=1.0)])
    with pytest.raises(ValueError, match="before making it"):
        OptimizerContainer(model.parts()).add_param_group({"params": [torch.ones(1)]})


def test_trainer_fit_equals_the_parts_and_counts_each_step_once(tmp_path):
    model = TwoParts()
    trainer = fit(model, 2, tmp_path)
    assert trainer.global_step == 6
    assert_same_weights(model, steps_apart(TwoParts(), 6))


def test_scheduler_scales_both_rates(tmp_path):
    model = TwoParts(scheduled=True)
    trainer = fit(model, 2, tmp_path)
    assert_same_weights(model, steps_apart(TwoParts(), 6, lambda step: 0.5 ** (step // 3)))
    rates = [
        group["lr"] for part in trainer.optimizers[0].optimizers for group in part.param_groups
    ]
    assert rates == [0.1 * 0.25, 0.01 * 0.25]


def test_resumed_fit_equals_uninterrupted(tmp_path):
    first = TwoParts(scheduled=True)
    trainer = fit(first, 1, tmp_path)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed, whole = TwoParts(scheduled=True), TwoParts(scheduled=True)
    fit(resumed, 2, tmp_path, ckpt_path=tmp_path / "one.ckpt")
    fit(whole, 2, tmp_path)
    assert_same_weights(resumed, whole)


def test_state_and_closed_form_bytes_are_the_sum_of_the_parts():
    model = TwoParts()
    container = OptimizerContainer(model.parts())
    steps_joined(model, container, 1)
    assert set(container.state) == {model.value.weight, model.value.bias}
    # SGD: 4 bytes for each of 15 weights; AdamW: 12 for each of 4
    assert closed_form_bytes(container) == 4 * 15 + 12 * 4
    moved = {"exp_avg": torch.ones(1)}
    container.state[model.value.bias] = moved
    assert container.optimizers[1].state[model.value.bias] is moved
