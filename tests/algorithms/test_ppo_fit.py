"""PPO in a real Trainer: two optimizers, warm-up, clipping, resumption, and what is reported."""

import copy
import csv
import json

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from rlsgd.algorithms import GRPO, PPO
from rlsgd.callbacks import EffectiveRank, Memory, UpdateSparsity
from tests.algorithms.setups import make_data, make_module, make_trainer


def sgd(parameters):
    return SGD(parameters, lr=2.0**-4)


def adamw(parameters):
    return AdamW(parameters, lr=1e-3, weight_decay=0.1)


class Weights(Callback):
    """Copies of both models' weights at the start and after each epoch."""

    def __init__(self):
        self.policy, self.value = [], []

    def on_train_start(self, trainer, pl_module):
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        for name in ("policy", "value"):
            weights = [p.detach().clone() for p in getattr(pl_module, name).parameters()]
            getattr(self, name).append(weights)


def same(left, right):
    return [torch.equal(a, b) for a, b in zip(left, right, strict=True)]


def fit(folder, out, *, epochs=1, callbacks=(), ckpt_path=None, trainer=None, data=None, **options):
    torch.manual_seed(0)
    module = make_module(PPO, folder, **options)
    weights = Weights()
    runner = make_trainer(
        out, max_epochs=epochs, callbacks=[weights, *callbacks], **(trainer or {})
    )
    runner.fit(
        module, datamodule=make_data(folder, group_size=1, **(data or {})), ckpt_path=ckpt_path
    )
    return module, runner, weights


@pytest.mark.parametrize("shared_backbone", [False, True])
@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_warmup_moves_the_critic_alone(tiny_llama, tmp_path, optimizer, shared_backbone):
    _, trainer, weights = fit(
        tiny_llama,
        tmp_path,
        epochs=2,
        optimizer=optimizer,
        shared_backbone=shared_backbone,
        critic_warmup_epochs=1,
        inner_epochs=2,
    )
    assert all(same(weights.policy[0], weights.policy[1]))
    assert not any(same(weights.value[0], weights.value[1])[-2:])  # head
    assert not any(same(weights.policy[1], weights.policy[2]))
    assert trainer.global_step == 4
    if not shared_backbone:
        assert not all(same(weights.value[0], weights.value[1])[:-2])


def test_optimizers_are_the_ones_asked_for(tiny_llama, tmp_path):
    _, trainer, _ = fit(tiny_llama, tmp_path, optimizer=sgd, value_optimizer=adamw)
    assert [type(part) for part in trainer.optimizers[0].optimizers] == [SGD, AdamW]
    _, trainer, _ = fit(tiny_llama, tmp_path, optimizer=adamw)
    _, critic = trainer.optimizers[0].optimizers
    assert type(critic) is AdamW and critic.param_groups[0]["weight_decay"] == 0.1


def test_critic_does_not_couple_to_the_policys_step(tiny_llama, tmp_path):
    """Clipped together, a critic with 1000 times the gradient would stop the policy."""
    clipped = {"gradient_clip_val": 0.01}
    small = fit(tiny_llama, tmp_path, value_coef=1.0, trainer=clipped)
    large = fit(tiny_llama, tmp_path, value_coef=1000.0, trainer=clipped)
    assert all(same(small[2].policy[1], large[2].policy[1]))
    for _, trainer, weights in (small, large):
        for name, prefix in (("policy", ""), ("value", "critic/")):
            before, after = getattr(weights, name)
            step = torch.nn.utils.get_total_norm(
                [a - b for a, b in zip(after, before, strict=True)]
            )
            assert step.item() == pytest.approx(0.01 * 2**-4, rel=1e-3), name
            assert trainer.callback_metrics[f"{prefix}grad_clipped_fraction"] == 1
    norms = [
        trainer.callback_metrics["critic/grad_norm"].item() for _, trainer, _ in (small, large)
    ]
    assert norms[1] == pytest.approx(1000 * norms[0], rel=1e-5)
    policy_norms = {
        trainer.callback_metrics["grad_norm"].item() for _, trainer, _ in (small, large)
    }
    assert len(policy_norms) == 1 and policy_norms.pop() > 0.01


def test_logged_norms_and_losses(tiny_llama, tmp_path):
    _, trainer, weights = fit(tiny_llama, tmp_path)  # no clipping: a step is lr times gradient
    for name, key in (("policy", "grad_norm"), ("value", "critic/grad_norm")):
        before, after = getattr(weights, name)
        step = torch.nn.utils.get_total_norm([a - b for a, b in zip(after, before, strict=True)])
        assert trainer.callback_metrics[key].item() == pytest.approx(step.item() * 16, rel=1e-3)
    metrics = trainer.callback_metrics
    # the first values are 0, so the critic's loss is half the mean square of the returns
    assert metrics["critic/values/mean"] == 0 and metrics["critic/vf_explained_var"] == 0
    assert metrics["critic/returns/mean"] > 0
    assert metrics["value_loss"] > metrics["critic/returns/mean"].square() / 2
    assert metrics["loss"].item() == pytest.approx(metrics["value_loss"].item(), abs=1e-5)


def test_microbatches_change_nothing(tiny_llama, tmp_path):
    whole = fit(tiny_llama, tmp_path, inner_epochs=2)
    parts = fit(tiny_llama, tmp_path, inner_epochs=2, trainer={"accumulate_grad_batches": 4})
    for name in ("policy", "value"):
        for ours, theirs in zip(
            getattr(whole[2], name)[1], getattr(parts[2], name)[1], strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for key in ("value_loss", "critic/grad_norm", "loss"):
        ours, theirs = (run[1].callback_metrics[key].item() for run in (whole, parts))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), key


def test_values_of_a_rollout_keep_their_rows(tiny_llama, tmp_path):
    """Minibatches are shuffled, and each row's value must come back to its row."""
    module, trainer, _ = fit(tiny_llama, tmp_path, minibatches=2)
    with torch.no_grad():
        torch.nn.init.normal_(module.value.head.weight)
        data = trainer.datamodule
        data.setup("fit")
        rollouts = module.rollout(data.prompts(0), 1)
        data.teardown("fit")
        values, last_values = module.value(module.policy, rollouts)
    torch.testing.assert_close(rollouts.values, values, rtol=0, atol=1e-5)
    torch.testing.assert_close(module.values(rollouts)[1], last_values, rtol=0, atol=1e-5)
    assert values[rollouts.completion_mask].std() > 0.1


def test_resumed_equals_uninterrupted(tiny_llama, tmp_path):
    options = {
        "optimizer": sgd,
        "value_optimizer": adamw,
        "lr_scheduler": lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.5**epoch),
        "critic_warmup_epochs": 1,
    }
    _, trainer, _ = fit(tiny_llama, tmp_path, **copy.copy(options))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=False)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"policy", "value"}
    _, _, resumed = fit(
        tiny_llama, tmp_path, epochs=3, ckpt_path=tmp_path / "one.ckpt", **copy.copy(options)
    )
    _, _, whole = fit(tiny_llama, tmp_path, epochs=3, **copy.copy(options))
    assert all(same(resumed.policy[-1], whole.policy[-1]))
    assert all(same(resumed.value[-1], whole.value[-1]))
    assert not any(same(whole.value[2], whole.value[3]))


def test_what_is_reported_of_both_models(tiny_llama, tmp_path):
    callbacks = [
        UpdateSparsity(),
        UpdateSparsity(model="value"),
        EffectiveRank(model="value"),
        Memory(),
    ]
    module, _, _ = fit(
        tiny_llama,
        tmp_path,
        callbacks=callbacks,
        trainer={"logger": CSVLogger(tmp_path, name="", version="")},
        value_optimizer=adamw,
        critic_warmup_epochs=1,
    )
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {key: float(value) for row in rows for key, value in row.items() if value}
    assert logged["update/unchanged_fp32"] == 1.0  # warm-up
    assert logged["update_step/unchanged_fp32"] == 1.0
    assert 0 <= logged["value_update/unchanged_fp32"] < 0.5
    assert logged["value_update_kind/head/unchanged_fp32"] == 0.0
    assert logged["value_update/effective_rank"] >= 1
    records = [json.loads(line) for line in (tmp_path / "value_update_sparsity.jsonl").open()]
    assert records[0]["tensors"]["head.weight"]["unchanged_fp32"] == 0.0
    policy, critic = (sum(p.numel() for p in m.parameters()) for m in (module.policy, module.value))
    assert logged["memory/closed_form_bytes"] == 4 * policy + 12 * critic
    assert logged["memory/parameter_bytes"] == 4 * (policy + critic)
    counts = 4 * len(list(module.value.parameters()))  # AdamW's step numbers
    assert logged["memory/optimizer_state_bytes"] == 8 * critic + counts


def test_measuring_a_critic_that_is_not_there_is_refused(tiny_llama, tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[UpdateSparsity(model="value")])
    with pytest.raises(ValueError, match="has model 'value', but GRPO trains none"):
        trainer.fit(make_module(GRPO, tiny_llama), datamodule=make_data(tiny_llama))
