"""NoiseScale measures gradients that a test has planted."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from rlsgd.callbacks import NoiseScale
from rlsgd.functional.noise_scale import predicted_memory
from tests.callbacks.callback_stub import jsonl, loader, logged, make_trainer, values


class Planted(LightningModule):
    """A loss that is linear in the weights: a batch's rows are the gradients of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.ModuleDict({"mlp": nn.Linear(2, 1, bias=False), "norm": nn.LayerNorm(1)})
        self.policy["norm"].requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        mlp = self.policy["mlp"]
        assert isinstance(mlp, nn.Linear)
        share = (batch @ mlp.weight[0]).sum() / 6  # six rows a step
        return share * self.trainer.accumulate_grad_batches


FIRST = [torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[2.0, 3.0]] * 4)]
SECOND = [torch.tensor([[0.0, 6.0]] * 2), torch.tensor([[3.0, 0.0]] * 4)]


def fit(tmp_path, callback, batches, **settings):
    defaults = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "epochs": 2}
    trainer = make_trainer(tmp_path, [callback], **(defaults | settings))

    class Turns:  # another step's batches in each epoch
        def __iter__(self):
            return iter(batches[trainer.current_epoch % len(batches)])

        def __len__(self):
            return len(batches[0])

    trainer.fit(Planted(), Turns())
    return trainer


def test_every_number_by_hand(tmp_path):
    """Gradients before clipping. Both steps have G = (2, 2), microbatches of 2 and 4 rows. Step 1:
    means (2, 0) and (2, 3), tr = 2 * 4 + 4 * 1. Step 2: (0, 6) and (3, 0), tr = 2 * 20 + 4 * 5.
    """
    fit(tmp_path, NoiseScale(), [FIRST, SECOND])
    assert values(tmp_path, "noise/rows") == [6.0, 6.0]
    assert values(tmp_path, "noise/trace") == pytest.approx([12.0, 60.0], rel=1e-5)
    means = [8 - 12 / 6, 8 - 60 / 6]
    assert values(tmp_path, "noise/squared_mean") == pytest.approx(means, rel=1e-5)
    # of the sums over both steps; the second alone has no signal
    assert values(tmp_path, "noise/scale") == pytest.approx([2.0, 72 / 4], rel=1e-5)
    assert values(tmp_path, "noise_kind/mlp/scale") == pytest.approx([2.0], rel=1e-5)
    assert values(tmp_path, "noise/signal_to_noise") == pytest.approx([3.0, 6 / 18], rel=1e-5)
    # the average before the second step is 0.1 of the first gradient, which equals the second
    assert [epoch for epoch, _, _ in logged(tmp_path, "noise/cosine")] == [1]
    assert values(tmp_path, "noise/cosine") == pytest.approx([1.0], rel=1e-6)
    assert values(tmp_path, "noise/history_ratio") == pytest.approx([1.0], rel=1e-6)
    expected = predicted_memory(1 / 3, decay=0.9, steps=1)
    assert values(tmp_path, "noise/cosine_predicted") == pytest.approx([expected[0]], rel=1e-5)
    predicted = values(tmp_path, "noise/history_ratio_predicted")
    assert predicted == pytest.approx([expected[1]], rel=1e-5)
    records = jsonl(tmp_path / "noise_scale.jsonl")
    assert records[1]["kinds"]["mlp"] == pytest.approx({"trace": 60.0, "squared_mean": -2.0})
    assert records[0]["total"]["scale"] == pytest.approx(2.0, rel=1e-5)


def test_cadence_and_window(tmp_path):
    fit(tmp_path, NoiseScale(every_n_epochs=2, window=1), [FIRST, SECOND], epochs=5)
    assert [epoch for epoch, _, _ in logged(tmp_path, "noise/trace")] == [1, 3, 4]
    assert values(tmp_path, "noise/trace") == pytest.approx([60.0, 60.0, 12.0], rel=1e-5)
    assert values(tmp_path, "noise/scale") == pytest.approx([2.0], rel=1e-5)


def test_a_step_without_a_gradient_has_no_cosine(tmp_path):
    """As where every group of a rollout has equal rewards."""
    nothing = [torch.zeros_like(rows) for rows in FIRST]
    fit(tmp_path, NoiseScale(), [FIRST, nothing, FIRST], epochs=3)
    assert [epoch for epoch, _, _ in logged(tmp_path, "noise/cosine")] == [2]
    # m = 0.9 * 0.1 G, corrected by 1 - 0.9^2
    assert values(tmp_path, "noise/history_ratio") == pytest.approx([0.09 / 0.19], rel=1e-6)
    assert values(tmp_path, "noise/squared_mean")[1] == 0.0


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"accumulate_grad_batches": 1}, "--trainer.accumulate_grad_batches 1: NoiseScale"),
        ({"devices": 2, "strategy": "ddp_spawn"}, "--trainer.devices 1"),
    ],
)
def test_what_it_cannot_measure_is_refused(settings, flag, tmp_path):
    trainer = make_trainer(tmp_path, [], **({"accumulate_grad_batches": 2} | settings))
    with pytest.raises(ValueError, match=flag):
        NoiseScale().on_train_start(trainer, Planted())


@pytest.mark.parametrize("arguments", [{"window": 0}, {"decay": 1.0}, {"every_n_epochs": 0}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        NoiseScale(**arguments)


def test_the_rows_are_those_of_rollouts(tiny_llama, tmp_path):
    from tests.callbacks.callback_stub import PolicyStub

    module = PolicyStub(tiny_llama, lambda p: torch.optim.SGD(p.parameters(), lr=0.1))
    make_trainer(tmp_path, [NoiseScale()], accumulate_grad_batches=2).fit(module, loader(2))
    assert values(tmp_path, "noise/rows") == [4.0] * 3
