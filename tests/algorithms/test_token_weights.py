"""Corrections and the entropy mask, through modules and a real Trainer."""

import math

import pytest
import torch

from rlsgd.algorithms import GRPO, GSPO, REINFORCE, RLOO, REINFORCEPlusPlus
from rlsgd.functional.masked import masked_whiten
from rlsgd.models.loading import load_policy
from rlsgd.models.scoring import completion_logprobs
from rlsgd.rollout.sampler import HFSampler
from tests.algorithms.setups import Ranks, bare, batch_of, fit, make_module

DIFFERENCES = "sampling/sampling_logp_difference/"


class Disagreeing(HFSampler):
    """Reports log-probabilities that are off by ln 2, ln 4 and ln 0.25 in turn."""

    def __init__(self):
        super().__init__(report_logprobs=True)

    def sample(self, policy, prompt_ids, **options):
        rollouts = super().sample(policy, prompt_ids, **options)
        turns = (rollouts.completion_mask.cumsum(1) - 1) % 3
        ratios = torch.tensor([2.0, 4.0, 0.25])[turns]
        rollouts.sampler_logprobs = rollouts.sampler_logprobs - ratios.log()
        return rollouts


class Silent:
    """A sampler that knows nothing of reporting."""

    def sample(self, policy, prompt_ids, **options):
        return HFSampler().sample(policy, prompt_ids, **options)


def test_sampler_reports_what_it_sampled_with(tiny_model):
    """At temperature 0.6, in two ragged batches, against a forward pass."""
    policy = load_policy(str(tiny_model))
    options = {
        "completions_per_prompt": 3,
        "max_completion_tokens": 6,
        "temperature": 0.6,
        "stop_token_ids": [1, *range(20, 26)],
        "pad_token_id": 0,
        "seed": 0,
    }
    prompts = [[5, 9, 12, 30], [14], [7, 8]]
    rollouts = HFSampler(batch_size=5, report_logprobs=True).sample(policy, prompts, **options)
    expected, _ = completion_logprobs(policy, rollouts, temperature=0.6)
    lengths = rollouts.completion_mask.sum(1)
    assert lengths.min() < lengths.max() and expected.min() < -1
    # logits up to 50 are rounded to 4e-6, by sums in another order here and there
    torch.testing.assert_close(rollouts.sampler_logprobs, expected.detach(), rtol=0, atol=2e-5)
    silent = HFSampler(batch_size=5).sample(policy, prompts, **options)
    assert silent.sampler_logprobs is None
    assert torch.equal(silent.input_ids, rollouts.input_ids)
    greedy = HFSampler(report_logprobs=True).sample(policy, prompts, **options | {"temperature": 0})
    assert greedy.sampler_logprobs is None


def test_mismatch_of_a_sampler_that_agrees(tiny_llama, tmp_path):
    sampler = HFSampler(report_logprobs=True)
    trainer, spy = fit(make_module(GRPO, tiny_llama, sampler=sampler), tiny_llama, tmp_path)
    seen = trainer.callback_metrics
    assert 0 < seen[DIFFERENCES + "mean"] <= seen[DIFFERENCES + "max"] < 1e-5
    assert seen["sampling/effective_sample_size"] == pytest.approx(1, abs=1e-6)
    assert seen["sampling/kl"] < 1e-9
    assert "sampling/rejected_fraction" not in seen
    (batch,) = spy.batches
    assert batch.advantages.ndim == 1  # nothing is corrected unless asked for


def test_mismatch_of_a_sampler_that_does_not(tiny_llama, tmp_path):
    module = make_module(GRPO, tiny_llama, sampler=Disagreeing())
    trainer, spy = fit(module, tiny_llama, tmp_path)
    seen = trainer.callback_metrics
    assert seen[DIFFERENCES + "max"] == pytest.approx(math.log(4), rel=1e-4)
    assert seen["sampling/importance_sampling_ratio/min"] == pytest.approx(0.25, rel=1e-4)
    assert seen["sampling/importance_sampling_ratio/max"] == pytest.approx(4, rel=1e-4)
    mask = spy.batches[0].completion_mask
    turns = (mask.cumsum(1) - 1)[mask] % 3
    mean = torch.tensor([2.0, 4.0, 0.25])[turns].mean()
    assert seen["sampling/importance_sampling_ratio/mean"] == pytest.approx(float(mean), rel=1e-4)


@pytest.mark.parametrize("algorithm", [GRPO, REINFORCE, REINFORCEPlusPlus])
def test_token_mask_removes_tokens_from_loss_and_denominator(tiny_llama, tmp_path, algorithm):
    options = {"sampler": Disagreeing(), "minibatches": 2}
    _, plain = fit(make_module(algorithm, tiny_llama, **options), tiny_llama, tmp_path)
    bounds = {"correction": "token-mask", "correction_low": 0.5, "correction_high": 3.0}
    module = make_module(algorithm, tiny_llama, **options, **bounds)
    trainer, spy = fit(module, tiny_llama, tmp_path)
    all_tokens = kept_tokens = 0
    for before, batch in zip(plain.batches, spy.batches, strict=True):
        mask = before.completion_mask
        first_of_three = mask & ((mask.cumsum(1) - 1) % 3 == 0)  # ratio 2; 4 and 0.25 are out
        assert torch.equal(batch.completion_mask, first_of_three)
        assert batch.num_tokens == first_of_three.sum()
        if algorithm is not REINFORCE:  # whose denominator counts completions
            assert batch.denominator == first_of_three.sum()
        advantages = before.advantages
        advantages = advantages[:, None] if advantages.ndim == 1 else advantages
        expected = (2 * advantages).expand(mask.shape)[first_of_three]
        torch.testing.assert_close(batch.advantages[first_of_three], expected, rtol=1e-4, atol=0)
        all_tokens, kept_tokens = all_tokens + mask.sum(), kept_tokens + first_of_three.sum()
    rejected = trainer.callback_metrics["sampling/rejected_fraction"]
    assert rejected == pytest.approx(float(1 - kept_tokens / all_tokens)) and rejected > 0.3


def test_sequence_truncate_weighs_completions(tiny_llama, tmp_path):
    options = {"sampler": Disagreeing(), "correction": "sequence-truncate"}
    module = make_module(GRPO, tiny_llama, correction_high=3.0, **options)
    trainer, spy = fit(module, tiny_llama, tmp_path)
    (batch,) = spy.batches
    _, plain = fit(make_module(GRPO, tiny_llama), tiny_llama, tmp_path)
    # --- by length: 2, 8 -> 3, 2 * 4 / 4 = 2, 4 -> 3, 16 -> 3, 4 -> 3
    weights = torch.tensor([0.0, 2.0, 3.0, 2.0, 3.0, 3.0, 3.0])[batch.completion_mask.sum(1)]
    expected = (weights * plain.batches[0].advantages)[:, None].expand(batch.input_ids.shape)
    mask = batch.completion_mask
    torch.testing.assert_close(batch.advantages[mask], expected[mask], rtol=1e-4, atol=0)
    assert torch.equal(mask, plain.batches[0].completion_mask)
    assert trainer.callback_metrics["sampling/rejected_fraction"] == 0


def test_correction_needs_a_sampler_that_reports(tiny_llama, tmp_path):
    message = r"--model.correction token-mask .* --model.sampler.init_args.report_logprobs true"
    with pytest.raises(ValueError, match=message):
        make_module(GRPO, tiny_llama, correction="token-mask")
    module = make_module(GRPO, tiny_llama, correction="token-mask", sampler=Silent())
    with pytest.raises(ValueError, match=message):
        fit(module, tiny_llama, tmp_path)


def test_sampler_that_reports_nonsense_is_an_error(tiny_llama, tmp_path):
    class Nonsense(Disagreeing):
        def sample(self, policy, prompt_ids, **options):
            rollouts = super().sample(policy, prompt_ids, **options)
            rollouts.sampler_logprobs[0] = float("nan")
            return rollouts

    with pytest.raises(ValueError, match=r"--model.sampler reported log-prob.* not finite"):
        fit(make_module(GRPO, tiny_llama, sampler=Nonsense()), tiny_llama, tmp_path)


def test_top_entropy_tokens_alone_have_advantages(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(GRPO, "policy_loss_alone", False)  # every row in its microbatch
    options = {"temperature": 0.6, "minibatches": 2, "inner_epochs": 2}
    module = make_module(GRPO, tiny_llama, top_entropy_fraction=0.25, **options)
    trainer, spy = fit(module, tiny_llama, tmp_path, accumulate_grad_batches=2)
    split = {"accumulate_grad_batches": 2}
    _, plain = fit(make_module(GRPO, tiny_llama, **options), tiny_llama, tmp_path, **split)
    policy, entropies, weighted, unweighted = load_policy(str(tiny_llama)), [], [], []
    for batch, before in zip(spy.batches[:4], plain.batches[:4], strict=True):  # an inner epoch
        mask = batch.completion_mask
        entropy = completion_logprobs(policy, batch, temperature=0.6, with_entropy=True)[1]
        entropies.append(entropy[mask])
        weighted.append(batch.advantages[mask])
        unweighted.append(before.advantages[:, None].expand(mask.shape)[mask])
        assert batch.denominator == before.denominator  # tokens left out stay in it
    entropies, weighted, unweighted = map(torch.cat, (entropies, weighted, unweighted))
    number = math.ceil(0.25 * len(entropies))
    top = entropies >= entropies.sort(descending=True).values[number - 1]
    assert number <= top.sum() < 2 * number  # the first tokens of a group tie
    assert torch.equal(weighted, unweighted * top) and weighted[top].abs().max() > 0.1
    threshold = trainer.callback_metrics["entropy_threshold"]
    assert threshold == pytest.approx(float(entropies[top].min()), rel=1e-6)


def test_top_entropy_does_not_depend_on_the_split(tiny_llama, tmp_path):
    trained = []
    for accumulate in (1, 2, 4):
        module = make_module(GRPO, tiny_llama, top_entropy_fraction=0.25, minibatches=2)
        options = {"accumulate_grad_batches": accumulate, "precision": "64-true"}
        trained.append(fit(module, tiny_llama, tmp_path, max_epochs=2, **options)[1].weights[-1])
    for weights in trained[1:]:
        torch.testing.assert_close(weights, trained[0], rtol=0, atol=1e-12)


def test_top_entropy_needs_token_ratios(tiny_llama):
    for algorithm in (GSPO, RLOO):
        with pytest.raises(ValueError, match=r"--model.top_entropy_fraction needs a ratio"):
            make_module(algorithm, tiny_llama, top_entropy_fraction=0.2)


def test_flags(tiny_llama):
    expected = {
        r"--model.entropy_coef must not be negative": {"entropy_coef": -0.1},
        r"--model.top_entropy_fraction must be": {"top_entropy_fraction": 0.0},
        r"--model.correction 'tis' is unknown": {"correction": "tis"},
        r"--model.kl_estimator 'k4' is unknown": {"kl_estimator": "k4"},
    }
    for message, options in expected.items():
        with pytest.raises(ValueError, match=message):
            make_module(GRPO, tiny_llama, sampler=Disagreeing(), **options)
    for algorithm in (RLOO, REINFORCEPlusPlus):
        with pytest.raises(ValueError, match=r"--model.kl_estimator must be k1 \(got k3\)"):
            make_module(algorithm, tiny_llama, kl_coef=0.1, kl_estimator="k3")


MASK = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)


def rollouts_of(rows):
    """Numbers of every kind for four completions, of which a rank has `rows`."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn((4, *MASK.shape), generator=generator, dtype=torch.float64)
    rollouts = batch_of(
        MASK,
        rewards=torch.tensor([1.0, 0.0, 4.0, 5.0], dtype=torch.float64),
        advantages=numbers[3, :, 0],
        old_logprobs=numbers[0],
        sampler_logprobs=numbers[1],
    )
    rollouts = rollouts.select(rows)
    rollouts.metrics = {}
    return rollouts, numbers[2][rows]


@pytest.mark.parametrize("options", [{"baseline": "batch"}, {"baseline": "running"}])
def test_reinforce_baseline_is_that_of_all_ranks(tiny_llama, monkeypatch, options):
    ranks = Ranks(monkeypatch, ["rlsgd.algorithms.reinforce"])

    def advantages(rank):
        rollouts, _ = rollouts_of(torch.arange(2 * rank, 2 * rank + 2))
        return bare(REINFORCE, tiny_llama, **options).advantages(rollouts, 2)

    assert torch.cat(ranks.run(advantages)).tolist() == [-1.5, -2.5, 1.5, 2.5]


def test_reinforce_plus_plus_whitens_over_all_ranks(tiny_llama, monkeypatch):
    ranks = Ranks(monkeypatch, ["rlsgd.algorithms.reinforce_plus_plus"])

    def advantages(rank):
        rollouts, _ = rollouts_of(torch.arange(2 * rank, 2 * rank + 2))
        return bare(REINFORCEPlusPlus, tiny_llama).advantages(rollouts, 2)

    whole = rollouts_of(torch.arange(4))[0].rewards[:, None].expand(MASK.shape)
    expected = masked_whiten(whole, MASK)
    torch.testing.assert_close(torch.cat(ranks.run(advantages)), expected, rtol=0, atol=1e-14)


def test_token_weights_are_of_all_ranks(tiny_llama, monkeypatch):
    options = {
        "sampler": Disagreeing(),
        "correction": "token-mask",
        "correction_low": 0.3,
        "top_entropy_fraction": 0.5,
    }

    def weigh(rows):
        rollouts, entropy = rollouts_of(rows)
        bare(GRPO, tiny_llama, **options).token_weights.apply(rollouts, entropy)
        return rollouts

    whole = weigh(torch.arange(4))
    assert 0 < whole.metrics["sampling/rejected_fraction"] < 1
    ranks = Ranks(monkeypatch, ["rlsgd.algorithms.token_weights"])
    parts = ranks.run(lambda rank: weigh(torch.arange(2 * rank, 2 * rank + 2)))
    for name in ("advantages", "completion_mask"):
        joined = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=1e-14)
    assert parts[0].metrics == parts[1].metrics == pytest.approx(whole.metrics)
