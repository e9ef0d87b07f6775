"""Completions without a gradient are not computed, and nothing else changes.

What is compared is the same fit with `policy_loss_alone` switched off, which leaves no row out. It
ends bit for bit alike where idle rows have microbatches of their own: the sums over the others are
the same then. Their entropy is the sampler's, which rounds otherwise than the trainer's.
"""

from functools import partial

import pytest
import torch

from rlsgd.algorithms import (
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    PPO,
    REINFORCE,
    RLOO,
    DrGRPO,
    REINFORCEPlusPlus,
    REINFORCEPlusPlusBaseline,
    RLModule,
)
from rlsgd.optimizers import FusedBackwardSGD
from tests.algorithms.setups import EarlyLetters, fit, make_module

SGD = partial(torch.optim.SGD, lr=2.0**-4, momentum=0.9, weight_decay=0.01)
ADAMW = partial(torch.optim.AdamW, lr=2.0**-10, weight_decay=0.1)
FUSED = partial(FusedBackwardSGD, lr=2.0**-4, weight_decay=0.01, gradient_clip_val=0.5)


class EvenQuestions(EarlyLetters):
    """All completions of every other question are as good."""

    def score(self, completion, problem):
        return super().score(completion, problem) if int(problem.answer) % 4 else 1.0


class FirstEpoch(EarlyLetters):
    """All completions are as good from the second epoch on, whose numbers are above 100."""

    def score(self, completion, problem):
        return super().score(completion, problem) if int(problem.answer) < 100 else 1.0


def both(algorithm, folder, tmp_path, monkeypatch, *, options, reward, **trainer_options):
    """Module, metrics and weights of two epochs, with idle rows left out and without."""
    results = []
    for leaves_out in (True, False):
        with monkeypatch.context() as patch:
            if not leaves_out:
                patch.setattr(RLModule, "policy_loss_alone", False)
            module = make_module(algorithm, folder, **options)
            trainer, spy = fit(
                module, folder, tmp_path, max_epochs=2, data={"reward": reward}, **trainer_options
            )
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        results.append((trainer, spy, metrics))
    return results


def assert_alike(first, second, *, tolerance=0.0):
    (trainer, spy, metrics), (whole_trainer, whole_spy, whole_metrics) = first, second
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(spy.weights, whole_spy.weights, **close)
    states = [t.optimizers[0].state_dict()["state"] for t in (trainer, whole_trainer)]
    torch.testing.assert_close(*states, **close)
    assert any((spy.weights[0][n] - w).abs().max() > 1e-4 for n, w in spy.weights[-1].items())
    assert whole_metrics.pop("rollout/skipped_fraction") == 0 <= metrics["rollout/skipped_fraction"]
    entropy = whole_metrics.pop("entropy")
    if trainer.lightning_module.inner_epochs * trainer.lightning_module.minibatches == 1:
        assert metrics["entropy"] == pytest.approx(entropy, rel=1e-5)  # else as it was sampled
    assert {name: metrics[name] for name in whole_metrics} == pytest.approx(
        whole_metrics, rel=tolerance, abs=tolerance
    )


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        *((algorithm, {}) for algorithm in (GRPO, CISPO, DrGRPO, GSPO, RLOO)),
        (DAPO, {"extra_rounds": 0, "overlong_tokens": 0}),  # which would leave no group alike
        (GRPO, {"optimizer": ADAMW}),
        (GRPO, {"share_prompts": True}),
        (GRPO, {"top_entropy_fraction": 0.2}),
        (REINFORCE, {"baseline": "group"}),
    ],
)
def test_bit_for_bit_where_idle_rows_have_microbatches_of_their_own(
    tiny_llama, tmp_path, monkeypatch, algorithm, options
):
    options = {"optimizer": SGD, "inner_epochs": 2, **options}
    rows = 4 if options.get("share_prompts") else 16  # microbatches of a group, or of a row
    with_idle, whole = both(
        algorithm,
        tiny_llama,
        tmp_path,
        monkeypatch,
        options=options,
        reward=EvenQuestions(),
        accumulate_grad_batches=rows,
        gradient_clip_val=0.5,
    )
    assert_alike(with_idle, whole)
    assert 0.5 <= with_idle[2]["rollout/skipped_fraction"] < 1
    computed = [len(batch) for batch in with_idle[1].batches]
    idle = [len(batch.left_out) for batch in with_idle[1].batches]
    assert sum(computed) + sum(idle) == 2 * 2 * 16
    assert computed[:rows] == sorted(computed[:rows]), "those without rows come first"
    if algorithm is GRPO and "top_entropy_fraction" not in options:
        assert sum(idle) == sum(computed), "two groups of four"


@pytest.mark.parametrize("algorithm", [GRPO, RLOO])
def test_drawn_minibatches_that_mix_idle_rows_with_others(
    tiny_llama, tmp_path, monkeypatch, algorithm
):
    assert_alike(
        *both(
            algorithm,
            tiny_llama,
            tmp_path,
            monkeypatch,
            options={"optimizer": SGD, "inner_epochs": 2, "minibatches": 2},
            reward=EvenQuestions(),
            accumulate_grad_batches=2,
            precision="64-true",
        ),
        tolerance=1e-11,
    )


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (REINFORCEPlusPlus, {}),  # whitens over all completions
        (REINFORCEPlusPlusBaseline, {}),
        (PPO, {}),  # its critic learns from all
        (GRPO, {"kl_coef": 0.1}),
        (GRPO, {"entropy_coef": 0.1}),
    ],
)
def test_rows_with_a_loss_are_computed(tiny_llama, tmp_path, algorithm, options):
    module = make_module(algorithm, tiny_llama, **options)
    trainer, spy = fit(module, tiny_llama, tmp_path, data={"reward": EvenQuestions()})
    assert trainer.callback_metrics["rollout/skipped_fraction"] == 0
    assert [len(batch) for batch in spy.batches] == [16]


class Restless(GRPO):
    """Has a loss where the advantage is 0."""

    def per_token_loss(self, logprobs, old_logprobs, batch):
        return super().per_token_loss(logprobs, old_logprobs, batch) + 0.1 * logprobs**2


class Loud(GRPO):
    """Has a term of its own beside `per_token_loss`."""

    def loss(self, batch):
        return super().loss(batch) + 0.1 * self.policy_logprobs(batch)[0].square().sum()


@pytest.mark.parametrize("algorithm", [Restless, Loud])
def test_a_loss_of_somebodys_own_sees_all_rows(tiny_llama, tmp_path, algorithm):
    module = make_module(algorithm, tiny_llama)
    _, spy = fit(module, tiny_llama, tmp_path, data={"reward": EvenQuestions()})
    assert [len(batch) for batch in spy.batches] == [16]


@pytest.mark.parametrize("optimizer", [SGD, ADAMW, FUSED])
def test_a_rollout_without_gradient_costs_no_forward_pass(
    tiny_llama, tmp_path, monkeypatch, optimizer
):
    """Its step is a step nevertheless: of momentum and weight decay."""
    passes = []
    configure_model = GRPO.configure_model

    def watched(module):
        configure_model(module)
        module.policy.register_forward_pre_hook(
            lambda *_: passes.append(module.current_epoch) if torch.is_grad_enabled() else None
        )

    monkeypatch.setattr(GRPO, "configure_model", watched)
    with_idle, whole = both(
        GRPO,
        tiny_llama,
        tmp_path,
        monkeypatch,
        options={"optimizer": optimizer},
        reward=FirstEpoch(),
        accumulate_grad_batches=1 if optimizer is FUSED else 2,
    )
    assert_alike(with_idle, whole)
    weights = with_idle[1].weights
    assert any((weights[1][n] != w).any() for n, w in weights[2].items())
    assert with_idle[2]["rollout/skipped_fraction"] == 1
    assert passes.count(1) == 2 and passes[-2:] == [1, 1], "those of the fit that computes all"
