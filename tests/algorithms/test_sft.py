"""Supervised fine-tuning: one step is weights minus rate times the cross-entropy's gradient."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from rlsgd.algorithms import SFT
from rlsgd.data import ReasoningGym, SolutionDataModule
from rlsgd.models.loading import EMBEDDED

RATE = 0.5


def make_data(**options):
    task = ReasoningGym(
        "basic_arithmetic", {"operators": ["+"], "max_terms": 2, "max_digits": 2}, "whole", 0.15
    )
    sizes = {"batches_per_epoch": 1, "batch_size": 6, "val_problems": 0, "seed": 3}
    return SolutionDataModule(task, "embedded", **{**sizes, **options})


@pytest.fixture
def data():
    return make_data()


def trained(data, tmp_path, clip=None, accumulate=1):
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
        accumulate_grad_batches=accumulate,
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


def assert_same_step(one, other):
    """The same loss and the same trained weights; float32 sums come in another order."""
    (module, trainer), (reference, reference_trainer) = one, other
    assert trainer.global_step == reference_trainer.global_step == 1
    loss = reference_trainer.callback_metrics["loss"]
    torch.testing.assert_close(trainer.callback_metrics["loss"], loss, rtol=1e-6, atol=0)
    weights = dict(reference.policy.named_parameters())
    for name, weight in module.policy.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-5, atol=1e-6, msg=name)


def test_packing_changes_neither_loss_nor_step(data, tmp_path):
    packed = make_data(packing=True, packed_row_tokens=32)
    [batch], [padded] = packed.batches(0), data.batches(0)
    assert 1 < len(batch) < len(padded) == 6, "or nothing is packed"
    assert_same_step(trained(packed, tmp_path), trained(data, tmp_path))


def test_accumulated_batches_are_one_mean_over_all_their_tokens(tmp_path):
    split = make_data(seed=9, batch_size=2, batches_per_epoch=3)
    counts = {int(batch.completion_mask.sum()) for batch in split.batches(0)}
    assert len(counts) > 1, "or a mean of means would be the same"
    assert_same_step(trained(split, tmp_path, accumulate=3), trained(make_data(seed=9), tmp_path))


def test_an_epoch_cannot_end_in_the_middle_of_a_step(tmp_path):
    with pytest.raises(ValueError, match=r"--trainer.accumulate_grad_batches 2 does not divide"):
        trained(make_data(batches_per_epoch=3), tmp_path, accumulate=2)


def test_a_model_that_mixes_documents_cannot_be_trained_on_packed_rows(tmp_path):
    module = SFT()
    module.policy = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    forward = module.policy.forward
    module.policy.forward = lambda *args, position_ids=None, **options: forward(*args, **options)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(ValueError, match=r"--data.packing true: LlamaForCausalLM: .* a document"):
        trainer.fit(module, datamodule=make_data(packing=True))
