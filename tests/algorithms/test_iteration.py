"""A rollout and its updates under a real Trainer."""

import pytest
import torch

from rlsgd.algorithms import CISPO, DAPO, GRPO, GSPO, REINFORCE, RLOO, DrGRPO, REINFORCEPlusPlus
from rlsgd.core.distributed import derived_seed
from rlsgd.models.loading import load_policy
from rlsgd.models.scoring import completion_logprobs
from rlsgd.rollout.sampler import HFSampler
from tests.algorithms.setups import EarlyLetters, Failing, fit, make_module, weights


class RecordingSampler(HFSampler):
    """Notes the weights and the seed of every call, and how many optimizer steps had been made."""

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = []

    def sample(self, policy, prompt_ids, **options):
        self.calls.append((options["seed"], weights(policy), self.step()))
        return super().sample(policy, prompt_ids, **options)


def assert_same_bits(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_first_ratio_is_exactly_1(tiny_model, tmp_path, precision):
    """At temperature 0.6, with several minibatches of several microbatches, under autocast too."""
    module = make_module(GRPO, tiny_model, temperature=0.6, minibatches=2, inner_epochs=2)
    seen, ratio = [], module.ratio

    def watched(logprobs, old_logprobs, mask):
        result = ratio(logprobs, old_logprobs, mask)
        if module.is_logging:  # and does not only try its loss out
            seen.append((len(result), bool((result == 1).all())))
        return result

    module.ratio = watched
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "precision": precision}
    fit(module, tiny_model, tmp_path, **options)
    assert len(seen) == 2 * 8 and sum(rows for rows, _ in seen) > 16
    assert all(is_one for _, is_one in seen[:2] + seen[8:10])  # the first minibatches
    assert not any(is_one for rows, is_one in seen[2:8] + seen[10:] if rows)


def test_one_step_is_weights_minus_rate_times_gradient(tiny_llama, tmp_path):
    """Bit for bit: the rate is a power of 2, so that its product with the gradient is exact."""
    module = make_module(GRPO, tiny_llama, temperature=0.6)
    _, spy = fit(module, tiny_llama, tmp_path)
    (batch,) = spy.batches
    assert batch.advantages.abs().max() > 0.1
    policy = load_policy(str(tiny_llama))
    assert_same_bits(weights(policy), spy.weights[0])
    logprobs, _ = completion_logprobs(policy, batch, temperature=0.6)
    ratio = (logprobs - logprobs.detach()).exp()
    loss = -(ratio * batch.advantages[:, None] * batch.completion_mask).sum()
    (loss / batch.completion_mask.sum()).backward()
    expected = {name: p.detach() - 2.0**-4 * p.grad for name, p in policy.named_parameters()}
    assert_same_bits(spy.weights[1], expected)
    assert any((spy.weights[0][n] != w).any() for n, w in expected.items())


def test_every_rollout_is_of_the_present_policy(tiny_llama, tmp_path):
    sampler = RecordingSampler()
    module = make_module(GRPO, tiny_llama, sampler=sampler, minibatches=2)
    sampler.step = lambda: module.global_step
    _, spy = fit(module, tiny_llama, tmp_path, max_epochs=4)
    assert [step for _, _, step in sampler.calls] == [0, 2, 4, 6]  # versions 0, 1, 2, 3
    for (_, sampled, _), present in zip(sampler.calls, spy.weights, strict=False):
        assert_same_bits(sampled, present)
    for before, after in zip(spy.weights, spy.weights[1:], strict=False):
        assert any((before[name] != after[name]).any() for name in before)


def test_seeds_differ_for_every_epoch_and_rank(tiny_llama, tmp_path, monkeypatch):
    calls = {}
    for rank in (0, 1):
        sampler = RecordingSampler()
        sampler.step = lambda: 0
        module = make_module(GRPO, tiny_llama, sampler=sampler)
        monkeypatch.setattr(GRPO, "global_rank", rank)
        fit(module, tiny_llama, tmp_path, max_epochs=3)
        calls[rank] = [seed for seed, _, _ in sampler.calls]
    assert len({*calls[0], *calls[1]}) == 6
    assert calls[1] == [derived_seed(0, "rollout", epoch, 1) for epoch in range(3)]
    assert derived_seed(1, "rollout", 0, 0) not in calls[0]  # another run


def test_loader_yields_every_completion_once_in_each_inner_epoch(tiny_llama, tmp_path):
    options = {"minibatches": 2, "inner_epochs": 3}
    module = make_module(GRPO, tiny_llama, **options)
    trainer, spy = fit(module, tiny_llama, tmp_path, max_epochs=2, accumulate_grad_batches=4)
    assert len(trainer.train_dataloader) == 3 * 2 * 4
    assert len(spy.batches) == 2 * 24 and trainer.global_step == 2 * 6
    orders = []
    for start in range(0, 48, 8):  # an inner epoch
        minibatches = [spy.batches[start : start + 4], spy.batches[start + 4 : start + 8]]
        rows = []
        for microbatches in minibatches:
            parts = [part for batch in microbatches for part in batch.with_left_out()]
            tokens = sum(int(part.completion_mask.sum()) for part in parts)
            assert {int(batch.denominator) for batch in microbatches} == {tokens}
            assert {int(batch.num_tokens) for batch in microbatches} == {tokens}
            for part in parts:
                texts = [prompt.text for prompt in part.prompts]
                rows += zip(texts, part.completions, strict=True)
        orders.append(rows)
    for first in (0, 3):
        inner_epochs = orders[first : first + 3]
        assert len({tuple(sorted(rows)) for rows in inner_epochs}) == 1
        assert len({tuple(rows) for rows in inner_epochs}) == 3
    assert sorted(orders[0]) != sorted(orders[3])


def test_rows_of_a_single_minibatch_stay_in_order(tiny_llama, tmp_path):
    _, spy = fit(make_module(GRPO, tiny_llama), tiny_llama, tmp_path, accumulate_grad_batches=4)
    texts = [
        [prompt.text for part in batch.with_left_out() for prompt in part.prompts]
        for batch in spy.batches
    ]
    assert texts == [[f"{i}+{i}="] * 4 for i in range(4)]


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_accumulation_leaves_the_trained_weights_alone(tiny_llama, tmp_path, aggregation):
    trained = {}
    for accumulate in (1, 2, 4):
        module = make_module(GRPO, tiny_llama, aggregation=aggregation, minibatches=2)
        options = {"accumulate_grad_batches": accumulate, "precision": "64-true"}
        trainer, spy = fit(module, tiny_llama, tmp_path, max_epochs=3, **options)
        assert trainer.global_step == 6
        lengths = torch.cat([batch.completion_mask.sum(1) for batch in spy.batches])
        assert set(lengths.tolist()) >= {1, 2, 6}
        trained[accumulate] = spy.weights[-1]
    for accumulate in (2, 4):
        torch.testing.assert_close(trained[accumulate], trained[1], rtol=0, atol=1e-12)
    assert any((trained[1][n] - w.double()).abs().max() > 1e-3 for n, w in spy.weights[0].items())


@pytest.mark.parametrize(
    "algorithm", [CISPO, DAPO, DrGRPO, GSPO, REINFORCE, REINFORCEPlusPlus, RLOO]
)
def test_every_algorithm_trains_alike_however_split(tiny_llama, tmp_path, algorithm):
    trained = []
    for accumulate in (1, 3):
        module = make_module(algorithm, tiny_llama, kl_coef=0.01, inner_epochs=2, minibatches=2)
        options = {"accumulate_grad_batches": accumulate, "precision": "64-true"}
        _, spy = fit(module, tiny_llama, tmp_path, max_epochs=2, **options)
        trained.append(spy.weights[-1])
    torch.testing.assert_close(*trained, rtol=0, atol=1e-12)
    assert any((trained[0][n] - w.double()).abs().max() > 1e-4 for n, w in spy.weights[0].items())


def test_failed_verifier_is_counted(tiny_llama, tmp_path):
    data = {"reward": Failing(), "reward_failure_score": -1.0}
    trainer, spy = fit(make_module(GRPO, tiny_llama), tiny_llama, tmp_path, data=data)
    (batch,) = spy.batches
    failed = [len(completion) % 2 == 1 for completion in batch.completions]
    assert 0 < sum(failed) < 16
    assert trainer.callback_metrics["rollout/verifier_failures"] == sum(failed)
    expected = [
        -1.0 if fails else EarlyLetters().score(completion, None)
        for completion, fails in zip(batch.completions, failed, strict=True)
    ]
    assert batch.rewards.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("algorithm", [GRPO, DrGRPO, DAPO, GSPO, CISPO, RLOO])
def test_group_of_one_is_an_error(tiny_llama, tmp_path, algorithm):
    with pytest.raises(ValueError, match=rf"--data.group_size 1: {algorithm.__name__} .* least 2"):
        fit(make_module(algorithm, tiny_llama), tiny_llama, tmp_path, data={"group_size": 1})


def test_groups_of_one_train_where_the_baseline_is_not_of_the_group(tiny_llama, tmp_path):
    for algorithm in (REINFORCE, REINFORCEPlusPlus):
        _, spy = fit(
            make_module(algorithm, tiny_llama), tiny_llama, tmp_path, data={"group_size": 1}
        )
        assert any((spy.weights[0][n] != w).any() for n, w in spy.weights[1].items())
    module = make_module(REINFORCE, tiny_llama, baseline="group")
    with pytest.raises(ValueError, match=r"--data.group_size 1 with --model.baseline group"):
        fit(module, tiny_llama, tmp_path, data={"group_size": 1})


def test_rows_that_cannot_be_divided_are_an_error(tiny_llama, tmp_path):
    with pytest.raises(ValueError, match=r"--model.minibatches 3 does not divide the 16 compl"):
        fit(make_module(GRPO, tiny_llama, minibatches=3), tiny_llama, tmp_path)
    module = make_module(GRPO, tiny_llama, minibatches=8)
    with pytest.raises(ValueError, match=r"--trainer.accumulate_grad_batches 4 .* 2 completions"):
        fit(module, tiny_llama, tmp_path, accumulate_grad_batches=4)


def test_reference_is_loaded_only_for_a_kl_term(tiny_model, tmp_path):
    module = make_module(GRPO, tiny_model)
    trainer, spy = fit(module, tiny_model, tmp_path)
    assert module.reference is None and spy.batches[0].ref_logprobs is None
    assert "kl" not in trainer.callback_metrics
    module = make_module(GRPO, tiny_model, kl_coef=0.1, temperature=0.6)
    trainer, spy = fit(module, tiny_model, tmp_path, accumulate_grad_batches=2)
    assert trainer.callback_metrics["kl"] == 0  # the policy that sampled is the reference
    assert_same_bits(weights(module.reference), spy.weights[0])
    assert not any(p.requires_grad for p in module.reference.parameters())
    trainer, _ = fit(make_module(GRPO, tiny_model, kl_coef=0.1), tiny_model, tmp_path, max_epochs=2)
    assert trainer.callback_metrics["kl"] > 1e-6


@pytest.mark.parametrize("algorithm", [RLOO, REINFORCEPlusPlus])
def test_kl_in_the_reward_is_logged_and_0_at_the_start(tiny_llama, tmp_path, algorithm):
    seen = []
    for epochs in (1, 2):
        module = make_module(algorithm, tiny_llama, kl_coef=0.1)
        trainer, _ = fit(module, tiny_llama, tmp_path, max_epochs=epochs)
        seen.append(float(trainer.callback_metrics["kl"]))
    assert seen[0] == 0 and abs(seen[1]) > 1e-6


def test_checkpoint_has_no_reference_and_resumes(tiny_llama, tmp_path):
    """Four epochs, and two and two more, end in the same weights; momentum makes it hard."""

    def momentum(parameters):
        return torch.optim.SGD(parameters, lr=2.0**-4, momentum=0.9)

    options = {"kl_coef": 0.1, "optimizer": momentum, "minibatches": 2}
    _, whole = fit(make_module(GRPO, tiny_llama, **options), tiny_llama, tmp_path, max_epochs=4)
    trainer, _ = fit(make_module(GRPO, tiny_llama, **options), tiny_llama, tmp_path, max_epochs=2)
    checkpoint = tmp_path / "half.ckpt"
    trainer.save_checkpoint(checkpoint)
    names = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert any(name.startswith("policy.") for name in names)
    assert not any("reference" in name for name in names)
    module = make_module(GRPO, tiny_llama, **options)
    trainer, resumed = fit(module, tiny_llama, tmp_path, max_epochs=4, ckpt_path=checkpoint)
    assert trainer.global_step == 8 and len(resumed.batches) == 4
    assert_same_bits(resumed.weights[-1], whole.weights[-1])
    assert any((module.reference.get_parameter(n) != w).any() for n, w in whole.weights[-1].items())
