"""--model.weight_rounding in training: policy, critic and reference, resumed and observed."""

import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.optim import SGD

from rlsgd.algorithms import GRPO, PPO
from rlsgd.callbacks import UpdateSparsity
from rlsgd.models.loading import load_policy
from rlsgd.optimizers import SGDLL
from tests.algorithms.setups import fit, make_data, make_module, make_trainer

ROUNDINGS = ("nearest", "stochastic")


def momentum(parameters):
    return SGD(parameters, lr=2.0**-4, momentum=0.9)


def on_grid(tensors):
    return [torch.equal(t.bfloat16().float(), t) for t in tensors]


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name, weight in left.items():
        assert torch.equal(weight, right[name]), name


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_weights_stay_on_the_grid_and_a_resumed_run_equals_a_whole_one(
    tiny_llama, tmp_path, rounding
):
    options = {"weight_rounding": rounding, "optimizer": momentum, "minibatches": 2, "seed": 3}
    _, whole = fit(make_module(GRPO, tiny_llama, **options), tiny_llama, tmp_path, max_epochs=4)
    assert all(all(on_grid(weights.values())) for weights in whole.weights)
    stored = load_policy(str(tiny_llama))
    assert not any(on_grid(stored.parameters()))
    for name, start in whole.weights[0].items():
        assert torch.equal(start, stored.get_parameter(name).detach().bfloat16().float())
    trainer, _ = fit(make_module(GRPO, tiny_llama, **options), tiny_llama, tmp_path, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    module = make_module(GRPO, tiny_llama, **options)
    resume = {"max_epochs": 4, "ckpt_path": tmp_path / "half.ckpt"}
    _, resumed = fit(module, tiny_llama, tmp_path, **resume)
    assert_same_bits(resumed.weights[-1], whole.weights[-1])
    assert any(not torch.equal(w, whole.weights[0][name]) for name, w in whole.weights[-1].items())
    for (name, ours), theirs in zip(module.policy.named_buffers(), stored.buffers(), strict=True):
        assert torch.equal(ours, theirs), f"{name} is no weight"


def test_without_it_the_weights_are_those_that_were_loaded(tiny_llama, tmp_path):
    _, spy = fit(make_module(GRPO, tiny_llama), tiny_llama, tmp_path)
    assert_same_bits(spy.weights[0], dict(load_policy(str(tiny_llama)).named_parameters()))


def test_the_reference_is_rounded_as_the_policy_is(tiny_llama, tmp_path):
    module = make_module(GRPO, tiny_llama, weight_rounding="nearest", kl_coef=0.1)
    trainer, _ = fit(module, tiny_llama, tmp_path)
    assert all(on_grid(module.reference.parameters()))
    assert trainer.callback_metrics["kl"] == 0.0


def test_the_critic_is_rounded_with_numbers_of_its_own(tiny_llama, tmp_path):
    module = make_module(PPO, tiny_llama, weight_rounding="stochastic")
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, datamodule=make_data(tiny_llama, group_size=1))
    assert all(on_grid([*module.policy.parameters(), *module.value.parameters()]))
    assert module.value.head.weight.any(), "it was trained"
    assert float(trainer.callback_metrics["critic/learning_rate"]) == 2.0**-4


def test_callbacks_see_rounded_weights(tiny_llama, tmp_path):
    """The update is measured from the rounded start: storage in bfloat16 alone is no update."""
    module = make_module(GRPO, tiny_llama, weight_rounding="nearest")
    options = {"callbacks": [UpdateSparsity()], "log_every_n_steps": 1}
    trainer = make_trainer(tmp_path, logger=CSVLogger(tmp_path, "", ""), **options)
    trainer.fit(module, datamodule=make_data(tiny_llama))
    with (tmp_path / "metrics.csv").open() as file:
        [row] = [row for row in csv.DictReader(file) if row["update/unchanged_fp32"]]
    assert row["update/unchanged_fp32"] == row["update/unchanged_bf16"]
    assert 0 < float(row["update/unchanged_fp32"]) < 1


def test_weights_stored_in_bfloat16_are_refused_before_the_first_step(tiny_llama, tmp_path):
    module = make_module(GRPO, tiny_llama, weight_rounding="nearest")
    with pytest.raises(ValueError, match=r"--trainer\.precision to 32-true or bf16-mixed"):
        fit(module, tiny_llama, tmp_path, precision="bf16-true")
    assert module.global_step == 0


def test_what_an_optimizer_clips_is_logged_for_policy_and_critic(tiny_llama, tmp_path):
    def policy(parameters):
        return SGDLL(parameters, lr=1.0, momentum=0.0, head_row_clip=1e9, update_rms_clip=1e-9)

    def critic(parameters):
        return SGDLL(parameters, lr=1.0, head_row_clip=None, update_rms_clip=1e9)

    module = make_module(PPO, tiny_llama, optimizer=policy, value_optimizer=critic)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=make_data(tiny_llama, group_size=1))
    metrics = trainer.callback_metrics
    assert metrics["tensors_clipped_fraction"] == 1.0
    assert metrics["head_rows_clipped_fraction"] == 0.0
    assert metrics["critic/tensors_clipped_fraction"] == 0.0
    assert "critic/head_rows_clipped_fraction" not in metrics
