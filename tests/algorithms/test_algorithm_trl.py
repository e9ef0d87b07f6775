"""Our modules' `loss` against TRL's, value and gradient, on a minibatch of two microbatches.

The policy is a bigram table [V, V]; both sides get the same log-probabilities from it. TRL's masks
are 1 in our completion columns. What differs, each on purpose, is kept out of these batches:

- TRL's entropy bonus is a mean of microbatch means, ours a mean over the minibatch; equal in one.
- TRL keeps tokens that a correction's mask rejects in the denominator and in the KL term.
- TRL's k3-corrected KL takes the ratio of the loss, so that of the sequence under GSPO; ours takes
  that of the token.
"""

from collections import defaultdict
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from rlsgd.algorithms import CISPO, DAPO, GRPO, GSPO, DrGRPO
from tests.algorithms.setups import bare, batch_of

pytest.importorskip("trl")
from trl.trainer.grpo_trainer import GRPOTrainer

VOCABULARY, BUDGET = 7, 9
LENGTHS = torch.tensor([8, 2, 5, 1, 3, 2])
MASK = torch.cat([torch.zeros(6, 1), torch.arange(8) < LENGTHS[:, None]], 1).bool()
MICROBATCHES = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])]
SEQ_MEAN = {"aggregation": "seq-mean-token-mean"}
CASES = {
    "grpo": (GRPO, SEQ_MEAN, {"loss_type": "grpo"}),
    "grpo-dual-clip": (GRPO, SEQ_MEAN | {"dual_clip": 1.5}, {"loss_type": "grpo", "delta": 1.5}),
    "dr_grpo": (DrGRPO, {}, {"loss_type": "dr_grpo"}),
    "dapo": (DAPO, {}, {"loss_type": "dapo", "high": 0.28}),
    "gspo": (GSPO, {}, {"loss_type": "grpo", "level": "sequence", "low": 3e-4, "high": 4e-4}),
    "cispo": (CISPO, {"max_ratio": 1.3}, {"loss_type": "cispo", "high": 1.3}),
}
EXACT = {"rtol": 0, "atol": 1e-15}


def bigram(parameter, input_ids):
    """Log-probabilities and entropy [B, T]; row i of the table holds the logits after token i."""
    logprobs = parameter[input_ids[:, :-1]].log_softmax(-1)
    picked = logprobs.gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    first = torch.zeros_like(picked[:, :1])
    return torch.cat([first, picked], 1), torch.cat([first, entropy], 1)


@pytest.fixture
def parameter():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)


@pytest.fixture
def rollouts(parameter):
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(0, VOCABULARY, (6, 9), generator=generator)

    def nearby(scale):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        return bigram(parameter + scale * noise, input_ids)[0]

    old_logprobs, ref_logprobs = nearby(0.6), nearby(0.8)
    advantages = torch.tensor([1.2, -0.9, -0.4, 0.7, -1.1, 0.3], dtype=torch.float64)
    batch = batch_of(
        MASK, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, advantages=advantages
    )
    batch.input_ids = input_ids
    return batch


def ours(algorithm, options, tiny_llama, leaf, rollouts, rows):
    module = bare(algorithm, tiny_llama, max_completion_tokens=BUDGET, **options)

    def policy_logprobs(batch):
        logprobs, batch.entropy = bigram(leaf, batch.input_ids)
        old_logprobs = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        return logprobs, old_logprobs

    module.policy_logprobs = policy_logprobs
    batch = rollouts.select(rows)
    batch.denominator, batch.num_tokens = module.denominators(rollouts)
    if not module.kl_coef:
        batch.ref_logprobs = None
    return module.loss(batch)


def theirs(
    leaf,
    rollouts,
    rows,
    *,
    loss_type,
    level="token",
    low=0.2,
    high=0.2,
    delta=None,
    kl_coef=0.0,
    entropy_coef=0.0,
    weights=None,
    entropy_mask=None,
    parts=2,
):
    batch = rollouts.select(rows)
    logprobs, entropy = bigram(leaf, batch.input_ids)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs[:, 1:], entropy[:, 1:], None),
        _metrics={"train": defaultdict(list)},
        _entropy_bonus_enabled=entropy_coef > 0,
        accelerator=SimpleNamespace(
            num_processes=1,
            sync_gradients=True,
            gather=lambda x: x,
            reduce=lambda x, reduction: x,
        ),
        args=SimpleNamespace(delta=delta, steps_per_generation=parts, use_bias_correction_kl=False),
        aux_loss_enabled=False,
        beta=kl_coef,
        current_gradient_accumulation_steps=parts,
        entropy_coef=entropy_coef,
        epsilon_high=high,
        epsilon_low=low,
        get_high_entropy_mask=lambda *_: entropy_mask[rows, 1:],
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=BUDGET,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0 if entropy_mask is None else 0.5,
        use_adaptive_entropy=False,
        use_vllm=weights is not None,
        vllm_importance_sampling_correction=True,
    )
    inputs = {
        "prompt_ids": batch.input_ids[:, :1],
        "prompt_mask": torch.ones_like(batch.input_ids[:, :1]),
        "completion_ids": batch.input_ids[:, 1:],
        "completion_mask": batch.completion_mask[:, 1:].long(),
        "advantages": batch.advantages,
        "num_items_in_batch": rollouts.completion_mask.sum(),
    }
    if batch.old_logprobs is not None:
        inputs["old_per_token_logps"] = batch.old_logprobs[:, 1:]
    if batch.ref_logprobs is not None:
        inputs["ref_per_token_logps"] = batch.ref_logprobs[:, 1:]
    if weights is not None:
        inputs["importance_sampling_ratio"] = weights[rows, 1:]
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def summed(parameter, share_of, microbatches):
    """Sum of the microbatches' losses and its gradient, as an optimizer step sees them."""
    leaf = parameter.clone().requires_grad_()
    losses = [share_of(leaf, rows) for rows in microbatches]
    sum(losses).backward()
    return sum(losses).detach(), leaf.grad


def both(parameter, rollouts, tiny_llama, case, *, our_rollouts=None, our_options=None, **options):
    algorithm, flags, trl = CASES[case]
    flags = flags | {"kl_coef": options.get("kl_coef", 0.0)} | (our_options or {})
    microbatches = MICROBATCHES[: options.get("parts", 2)]
    if len(microbatches) == 1:
        rollouts = rollouts.select(microbatches[0])
    used = our_rollouts or rollouts

    def our_share(leaf, rows):
        return ours(algorithm, flags, tiny_llama, leaf, used, rows)

    def their_share(leaf, rows):
        return theirs(leaf, rollouts, rows, **trl, **options)

    return (
        summed(parameter, our_share, microbatches),
        summed(parameter, their_share, microbatches),
    )


@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_trl(parameter, rollouts, tiny_llama, case, kl_coef):
    mine, trl = both(parameter, rollouts, tiny_llama, case, kl_coef=kl_coef)
    torch.testing.assert_close(mine, trl, **EXACT)
    assert trl[1].abs().max() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_first_update_equals_trl(parameter, rollouts, tiny_llama, case):
    rollouts.old_logprobs = None
    torch.testing.assert_close(*both(parameter, rollouts, tiny_llama, case), **EXACT)


def test_the_batch_tells_the_cases_apart(parameter, rollouts, tiny_llama):
    values = {case: both(parameter, rollouts, tiny_llama, case)[1][0].item() for case in CASES}
    ordered = sorted(values.values())
    assert min(b - a for a, b in pairwise(ordered)) > 1e-3, values


@pytest.mark.parametrize("case", ["grpo-dual-clip", "dapo", "cispo"])
def test_weights_in_the_advantages_equal_trl_weights_of_the_loss(
    parameter, rollouts, tiny_llama, case
):
    """A truncated importance weight multiplies the policy loss; ours sits in the advantages."""
    generator = torch.Generator().manual_seed(3)
    weights = 2 * torch.rand(MASK.shape, generator=generator, dtype=torch.float64)
    weighted = rollouts.select(torch.arange(6))
    weighted.advantages = weights * rollouts.advantages[:, None]
    mine, trl = both(
        parameter, rollouts, tiny_llama, case, kl_coef=0.04, weights=weights, our_rollouts=weighted
    )
    torch.testing.assert_close(mine, trl, **EXACT)
    unweighted, _ = both(parameter, rollouts, tiny_llama, case, kl_coef=0.04)
    assert (unweighted[1] - mine[1]).abs().max() > 1e-2


def test_entropy_mask_equals_trl(parameter, rollouts, tiny_llama):
    entropy = bigram(parameter, rollouts.input_ids)[1]
    top = entropy >= entropy[MASK].median()
    masked = rollouts.select(torch.arange(6))
    masked.advantages = top * rollouts.advantages[:, None]
    mine, trl = both(
        parameter,
        rollouts,
        tiny_llama,
        "dapo",
        kl_coef=0.04,
        entropy_mask=top & MASK,
        our_rollouts=masked,
    )
    torch.testing.assert_close(mine, trl, **EXACT)


@pytest.mark.parametrize("case", ["dr_grpo", "dapo"])
def test_entropy_bonus_equals_trl_in_one_microbatch(parameter, rollouts, tiny_llama, case):
    options = {"entropy_coef": 0.3, "parts": 1}
    mine, trl = both(
        parameter, rollouts, tiny_llama, case, our_options={"entropy_coef": 0.3}, **options
    )
    torch.testing.assert_close(mine, trl, **EXACT)
    without, _ = both(parameter, rollouts, tiny_llama, case, parts=1)
    assert (without[1] - mine[1]).abs().max() > 1e-3
