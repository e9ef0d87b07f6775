"""Supervised fine-tuning: one step is weights minus rate times the cross-entropy's gradient."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from rlsgd.algorithms import SFT
from rlsgd.data import ReasoningGym, SolutionDataModule
from rlsgd.models import EMBEDDED

RATE = 0.5


@pytest.fixture
def data():
    task = ReasoningGym(
        "basic_arithmetic", {"operators": ["+"], "max_terms": 2, "max_digits": 2}, "whole", 0.15
    )
    return SolutionDataModule(
        task, "embedded", batches_per_epoch=1, batch_size=6, val_problems=0, seed=3
    )


def trained(data, tmp_path, clip=None):
    module = SFT(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=RATE))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        gradient_clip_val=clip,
    )
    trainer.fit(module, datamodule=data)
    return module, trainer


def reference(data):
    """The loss by cross-entropy over the answer's tokens alone, and its gradients."""
    [batch] = data.batches(0)
    policy = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    assert 0 < batch.completion_mask.sum() < batch.attention_mask.sum()
    labels = torch.where(batch.completion_mask, batch.input_ids, -100)
    logits = policy(batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    return loss.detach(), policy


def test_one_step_is_weights_minus_rate_times_gradient(data, tmp_path):
    module, trainer = trained(data, tmp_path)
    loss, policy = reference(data)
    assert trainer.global_step == 1
    torch.testing.assert_close(trainer.callback_metrics["loss"], loss, rtol=1e-6, atol=0)
    expected = dict(policy.named_parameters())
    for name, weight in module.policy.named_parameters():
        start = expected[name]
        assert start.grad is not None and start.grad.abs().max() > 0
        torch.testing.assert_close(weight, start - RATE * start.grad, rtol=1e-5, atol=1e-7)


def test_clipping_is_logged_with_the_norm_before_it(data, tmp_path):
    _, policy = reference(data)
    norm = torch.cat([p.grad.flatten().double() for p in policy.parameters()]).norm().float()
    _, trainer = trained(data, tmp_path, clip=float(norm) / 2)
    torch.testing.assert_close(trainer.callback_metrics["grad_norm"], norm, rtol=1e-5, atol=0)
    assert trainer.callback_metrics["grad_clipped_fraction"] == 1
    assert trainer.callback_metrics["learning_rate"] == RATE
    _, trainer = trained(data, tmp_path, clip=float(norm) * 2)
    assert trainer.callback_metrics["grad_clipped_fraction"] == 0
