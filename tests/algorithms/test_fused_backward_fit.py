"""FusedBackwardSGD in a real Trainer: the same run as with torch's SGD, or a refusal before it."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from rlsgd.algorithms import GRPO, PPO
from rlsgd.callbacks import Memory, UpdateSparsity
from rlsgd.cli.main import main
from rlsgd.core.types import DivergedError
from rlsgd.optimizers import FusedBackwardSGD
from tests.algorithms.setups import fit, make_data, make_module, make_trainer

RATE = 2.0**-4
TWO_STEPS = {"minibatches": 2, "kl_coef": 0.1}


def torch_sgd(parameters):
    return SGD(parameters, lr=RATE)


def fused(parameters, **options):
    return FusedBackwardSGD(parameters, lr=RATE, **options)


def run(folder, tmp_path, optimizer, trainer=None, **options):
    module = make_module(GRPO, folder, optimizer=optimizer, **TWO_STEPS, **options)
    runner, spy = fit(module, folder, tmp_path, max_epochs=2, **(trainer or {}))
    return runner, spy.weights


def assert_same_run(ours, expected):
    """Weights after every epoch and every metric, bit for bit."""
    (trainer, weights), (plain_trainer, plain_weights) = ours, expected
    assert trainer.global_step == plain_trainer.global_step == 4
    for epoch, plain_epoch in zip(weights, plain_weights, strict=True):
        assert epoch.keys() == plain_epoch.keys()
        assert all(torch.equal(epoch[name], plain_epoch[name]) for name in epoch)
    assert not torch.equal(weights[0]["lm_head.weight"], weights[1]["lm_head.weight"])
    metrics, plain_metrics = trainer.callback_metrics, plain_trainer.callback_metrics
    assert metrics.keys() == plain_metrics.keys() >= {"loss", "kl", "grad_norm"}
    for name, value in plain_metrics.items():
        assert torch.equal(metrics[name], value), name


def test_a_fit_is_that_of_sgd(tiny_llama_untied, tmp_path):
    expected = run(tiny_llama_untied, tmp_path, torch_sgd)
    assert_same_run(run(tiny_llama_untied, tmp_path, fused), expected)


@pytest.mark.parametrize(("algorithm", "limit"), [("norm", 0.5), ("value", 0.01)])
def test_a_clipped_fit_is_that_of_sgd(tiny_llama_untied, tmp_path, algorithm, limit):
    """Also the metrics: a pass that measures the norm logs nothing and is no step."""
    clip = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    expected = run(tiny_llama_untied, tmp_path, torch_sgd, clip)
    ours = run(tiny_llama_untied, tmp_path, partial(fused, **clip))
    assert_same_run(ours, expected)
    assert expected[0].callback_metrics["grad_clipped_fraction"] > 0


def test_tied_weights_in_a_fit(tiny_llama, tmp_path):
    plain, plain_weights = run(tiny_llama, tmp_path, torch_sgd)
    trainer, weights = run(tiny_llama, tmp_path, fused)
    for name, weight in weights[-1].items():
        assert torch.equal(weight, plain_weights[-1][name]), name
    assert trainer.callback_metrics["grad_norm"] == plain.callback_metrics["grad_norm"]


class Hooks(Callback):
    """Counts what Lightning tells callbacks of a step."""

    def __init__(self):
        self.steps = self.batches = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps += 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1
        assert torch.isfinite(outputs["loss"])


def test_two_passes_are_one_step_to_callbacks(tiny_llama, tmp_path):
    module = make_module(GRPO, tiny_llama, optimizer=partial(fused, gradient_clip_val=0.5))
    hooks = Hooks()
    make_trainer(tmp_path, callbacks=[hooks]).fit(module, datamodule=make_data(tiny_llama))
    assert (hooks.steps, hooks.batches) == (1, 1)


def test_resumed_equals_uninterrupted_under_a_schedule(tiny_llama, tmp_path):
    def train(epochs, ckpt_path=None):
        module = make_module(
            GRPO,
            tiny_llama,
            optimizer=partial(fused, weight_decay=0.1),
            lr_scheduler=lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.5**epoch),
        )
        options = {"max_epochs": epochs, "ckpt_path": ckpt_path}
        return fit(module, tiny_llama, tmp_path, **options)

    trainer, _ = train(1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed, spy = train(2, tmp_path / "one.ckpt")
    _, whole = train(2)
    assert resumed.callback_metrics["learning_rate"] == RATE / 2
    for name, weight in whole.weights[-1].items():
        assert torch.equal(weight, spy.weights[-1][name]), name


@pytest.mark.parametrize("optimizer", [torch_sgd, fused])
def test_callbacks_measure_it_as_they_measure_sgd(tiny_llama, tmp_path, optimizer):
    module = make_module(GRPO, tiny_llama, optimizer=optimizer)
    trainer = make_trainer(
        tmp_path,
        callbacks=[Memory(), UpdateSparsity(tolerances=[0.0])],
        logger=CSVLogger(tmp_path, name="", version=""),
    )
    trainer.fit(module, datamodule=make_data(tiny_llama))
    header, *rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().split()]
    logged = {k: v for row in rows for k, v in zip(header, row, strict=True) if v}
    weights = sum(p.numel() for p in module.policy.parameters())
    largest = max(p.numel() for p in module.policy.parameters())
    expected = 4 * (largest if optimizer is fused else weights)
    assert int(logged["memory/gradient_bytes"]) == expected
    assert int(logged["memory/closed_form_bytes"]) == 4 * weights
    assert int(logged["memory/optimizer_state_bytes"]) == 0
    [record] = map(json.loads, (tmp_path / "update_sparsity.jsonl").read_text().splitlines())
    # the only step of the run: its update is the whole update
    assert logged["update_step/unchanged_fp32"] == logged["update/unchanged_fp32"]
    assert record["total"]["unchanged_fp32"] < 0.5


# ---- refusals, before anything is sampled


class Untouched(Callback):
    def on_train_start(self, trainer, pl_module):
        raise AssertionError("it should have been refused")


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--trainer.accumulate_grad_batches 2", {"accumulate_grad_batches": 2}),
        ("--trainer.gradient_clip_val 1.0", {"gradient_clip_val": 1.0}),
        ("--trainer.precision 16-mixed", {"plugins": [MixedPrecision("16-mixed", "cpu")]}),
    ],
)
def test_flags_of_the_trainer_that_cannot_be_honoured(tiny_llama, tmp_path, flag, options):
    trainer = make_trainer(tmp_path, callbacks=[Untouched()], **options)
    with pytest.raises(ValueError, match=f"^{flag}: "):
        trainer.fit(
            make_module(GRPO, tiny_llama, optimizer=fused), datamodule=make_data(tiny_llama)
        )


def test_the_command_line_refuses_before_the_base_is_validated(capsys, tmp_path, monkeypatch):
    def validate(*_, **__):
        raise AssertionError("it should have been refused")

    monkeypatch.setattr("lightning.pytorch.Trainer.validate", validate)
    flags = {
        "config": "configs/grpo_embedded.yaml",
        "model.optimizer": "rlsgd.optimizers.FusedBackwardSGD",
        "trainer.default_root_dir": str(tmp_path),
        "trainer.gradient_clip_val": "1.0",
    }
    assert main(["fit", *(f"--{name}={value}" for name, value in flags.items())]) == 2
    error = capsys.readouterr().err
    assert "--trainer.gradient_clip_val 1.0" in error
    assert "--model.optimizer.init_args.gradient_clip_val" in error


def test_accumulation_that_no_flag_asked_for(tiny_llama, tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[GradientAccumulationScheduler({0: 2})])
    module = make_module(GRPO, tiny_llama, optimizer=fused, minibatches=2)
    with pytest.raises(RuntimeError, match="cannot accumulate"):
        trainer.fit(module, datamodule=make_data(tiny_llama))


def test_a_critic_beside_it_is_refused(tiny_llama, tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[Untouched()])
    with pytest.raises(ValueError, match=r"^--model\.optimizer FusedBackwardSGD"):
        trainer.fit(make_module(PPO, tiny_llama, optimizer=fused), datamodule=make_data(tiny_llama))


def test_a_gradient_that_is_not_finite_names_the_tensor(tiny_llama, tmp_path):
    class Break(Callback):
        def on_train_start(self, trainer, pl_module):
            weight = pl_module.policy.model.layers[0].mlp.up_proj.weight
            weight.register_hook(lambda gradient: gradient * torch.nan)

    trainer = make_trainer(tmp_path, callbacks=[Break()])
    module = make_module(GRPO, tiny_llama, optimizer=fused)
    with pytest.raises(DivergedError, match=r"of model\.layers\.0\.mlp\.up_proj\.weight is nan"):
        trainer.fit(module, datamodule=make_data(tiny_llama))
