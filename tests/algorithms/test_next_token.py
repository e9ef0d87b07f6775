"""Next-token pre-training: the loss, its gradient and the held-out loss, by cross-entropy."""

import copy
import csv
import json
from itertools import pairwise

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from rlsgd.algorithms import NextToken
from rlsgd.data import TextDataModule
from rlsgd.models.loading import load_policy
from rlsgd.optimizers.schedulers import WarmupCosine
from tests.algorithms.setups import make_trainer

RATE = 0.5
TEXTS = [f"{'abcdefghij'[i % 10] * (i % 4 + 1)} {i} {'klmnop'[i % 6]}" for i in range(80)]


@pytest.fixture
def make_data(tmp_path, tiny_llama_untied):
    def make(**options):
        path = tmp_path / "text.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        sizes = {"sequence_length": 16, "batch_size": 4, "batches_per_epoch": 1}
        sizes |= {"val_blocks": 5, "val_batch_size": 2, "val_fraction": 0.25, "seed": 3}
        return TextDataModule(str(path), str(tiny_llama_untied), **{**sizes, **options})

    return make


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


def fitted(policy, data, folder, *, ckpt_path=None, scheduler=None, **trainer_options):
    module = NextToken(policy=str(policy), optimizer=sgd, lr_scheduler=scheduler)
    trainer = make_trainer(folder, **trainer_options)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, trainer


def documents_of(batch):
    """The pieces of documents in a batch of isolated ones, and how many tokens each predicts."""
    for row, positions in zip(batch.input_ids, batch.position_ids, strict=True):
        edges = [*(positions == 0).nonzero().flatten().tolist(), len(row)]
        for start, end in pairwise(edges):
            yield row[None, start:end]


def total_cross_entropy(policy, batch):
    """Sum over all predicted tokens [], every document by itself, and their number."""
    total, count = torch.zeros(()), 0
    for tokens in documents_of(batch):
        if tokens.shape[1] > 1:
            logits = policy(tokens, use_cache=False).logits[0, :-1]
            total = total + cross_entropy(logits, tokens[0, 1:], reduction="sum")
            count += tokens.shape[1] - 1
    return total, count


def test_one_step_is_weights_minus_rate_times_the_gradient_of_the_mean(
    make_data, tiny_llama_untied, tmp_path
):
    data = make_data()
    module, trainer = fitted(tiny_llama_untied, data, tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tiny_llama_untied).eval()
    [batch] = data.batches(0)
    total, count = total_cross_entropy(policy, batch)
    assert count < 4 * 15, "or no document ends inside a block"
    loss = total / count
    loss.backward()
    torch.testing.assert_close(trainer.callback_metrics["loss"], loss.detach(), rtol=1e-5, atol=0)
    expected = dict(policy.named_parameters())
    for name, weight in module.policy.named_parameters():
        start = expected[name]
        assert start.grad is not None and start.grad.abs().max() > 0
        # sums of float32 in another order
        torch.testing.assert_close(weight, start - RATE * start.grad, rtol=1e-5, atol=2e-6)


def test_stream_sees_the_document_before(make_data, tiny_llama_untied, tmp_path):
    data = make_data(document_attention="stream")
    _, trainer = fitted(tiny_llama_untied, data, tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tiny_llama_untied).eval()
    [batch] = data.batches(0)
    loss = policy(batch.input_ids, labels=batch.input_ids).loss  # transformers' own mean
    torch.testing.assert_close(trainer.callback_metrics["loss"], loss.detach(), rtol=1e-5, atol=0)


def test_accumulated_batches_are_one_mean_over_all_their_tokens(
    make_data, tiny_llama_untied, tmp_path
):
    split = make_data(batch_size=2, batches_per_epoch=2)
    counts = [int(batch.denominator) for batch in split.batches(0)]
    assert counts[0] != counts[1], "or a mean of means would be the same"
    module, trainer = fitted(tiny_llama_untied, split, tmp_path, accumulate_grad_batches=2)
    whole, reference = fitted(tiny_llama_untied, make_data(), tmp_path)
    assert trainer.global_step == reference.global_step == 1
    torch.testing.assert_close(
        trainer.callback_metrics["loss"], reference.callback_metrics["loss"], rtol=1e-6, atol=0
    )
    for ours, theirs in zip(module.policy.parameters(), whole.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    assert module.tokens_seen == whole.tokens_seen == sum(counts)


def test_held_out_loss_is_the_mean_over_all_tokens_of_all_batches(
    make_data, tiny_llama_untied, tmp_path
):
    data = make_data()
    module = NextToken(policy=str(tiny_llama_untied))
    [logged] = make_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    policy = AutoModelForCausalLM.from_pretrained(tiny_llama_untied).eval()
    with torch.no_grad():
        total, count = total_cross_entropy(policy, data.blocks(data.val_stream, list(range(5))))
    means = [b.completion_mask.sum().item() for b in data.val_dataloader()]
    assert len(set(means)) > 1, "or a mean of means would be the same"
    assert logged["val/loss"] == pytest.approx(float(total / count), rel=1e-6)
    assert logged["val/perplexity"] == pytest.approx(float((total / count).exp()), rel=1e-5)


def test_validation_is_float32_where_training_is_mixed(make_data, tiny_llama_untied, tmp_path):
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        module = NextToken(policy=str(tiny_llama_untied))
        trainer = make_trainer(tmp_path, precision=precision)
        losses += trainer.validate(module, datamodule=make_data(), verbose=False)
    assert losses[0] == losses[1]


def test_scheduler_steps_after_each_optimizer_step(make_data, tiny_llama_untied, tmp_path):
    def scheduler(optimizer):
        return WarmupCosine(optimizer, total_steps=4, warmup_steps=2, final_fraction=0.0)

    data = make_data(batches_per_epoch=6)
    module, trainer = fitted(
        tiny_llama_untied, data, tmp_path, scheduler=scheduler, accumulate_grad_batches=2
    )
    # three steps at 1/2, 1 and 1/2 of the rate; the fourth would be at 0
    mean = RATE * (0.5 + 1 + 0.5) / 3
    assert trainer.callback_metrics["learning_rate"] == pytest.approx(mean, rel=1e-6)
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_resumed_equals_uninterrupted_and_goes_on_counting(make_data, tiny_llama_untied, tmp_path):
    def options(name, epochs):
        logger = CSVLogger(tmp_path, name="", version=name)
        return {"max_epochs": epochs, "logger": logger, "enable_checkpointing": False}

    data = make_data(batches_per_epoch=2)
    whole, _ = fitted(tiny_llama_untied, data, tmp_path, **options("whole", 3))
    _, first = fitted(
        tiny_llama_untied, make_data(batches_per_epoch=2), tmp_path, **options("a", 1)
    )
    first.save_checkpoint(tmp_path / "first.ckpt")
    rest, _ = fitted(
        tiny_llama_untied,
        make_data(batches_per_epoch=2),
        tmp_path,
        ckpt_path=tmp_path / "first.ckpt",
        **options("b", 3),
    )
    for ours, theirs in zip(rest.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    expected = sum(int(b.denominator) for epoch in range(3) for b in data.batches(epoch))
    assert rest.tokens_seen == whole.tokens_seen == expected
    with (tmp_path / "whole" / "metrics.csv").open() as file:
        seen = [row["tokens_seen"] for row in csv.DictReader(file) if row["tokens_seen"]]
    assert [int(float(number)) for number in seen][-1] == expected and len(seen) == 3


def test_too_long_blocks_are_refused(make_data, tiny_llama_untied, tmp_path):
    with pytest.raises(ValueError, match=r"--data.sequence_length 65 is more than the model's 64"):
        fitted(tiny_llama_untied, make_data(sequence_length=65), tmp_path)


def test_a_model_that_mixes_documents_is_refused(make_data, tiny_llama_untied, tmp_path):
    """Attention that ignores where documents begin, as in recurrent models."""
    module = NextToken(policy=str(tiny_llama_untied))
    module.policy = load_policy(str(tiny_llama_untied))
    forward = module.policy.forward

    def mixing(*args, position_ids=None, **kwargs):
        return forward(*args, **kwargs)

    module.policy.forward = mixing
    data = make_data()
    with pytest.raises(ValueError, match=r"--data.document_attention isolated .*LlamaForCausalLM"):
        make_trainer(tmp_path).fit(module, datamodule=data)
    again = NextToken(policy=str(tiny_llama_untied))
    again.policy = copy.copy(module.policy)
    make_trainer(tmp_path).fit(again, datamodule=make_data(document_attention="stream"))
