"""Our loss against TRL's GRPO loss, value and gradient, on an accumulation window of two parts.

TRL's loss types are our aggregation modes with these denominators:

| TRL       | mode                      | denominator                                            |
|-----------|---------------------------|--------------------------------------------------------|
| `grpo`    | `seq-mean-token-mean`     | rows of the window                                     |
| `bnpo`    | `token-mean`              | tokens of the *microbatch* x number of microbatches    |
| `dapo`    | `token-mean`              | tokens of the window                                   |
| `dr_grpo` | `seq-mean-token-sum-norm` | rows of the window                                     |

Its `delta` is our `dual_clip`. What remains different, each on purpose:

- `bnpo` averages microbatch means, so its loss depends on how rows are split. Our algorithms count
  tokens over the window and never give this one; here the denominator is set by hand.
- A row without an unmasked token counts as a row in TRL's `grpo` and `dr_grpo`, not in ours
  (`test_empty_rows_count_in_trl_only`).
- `delta` is clamped without a check in TRL; at or below 1 + epsilon_high it would also bound
  positive advantages. We refuse it.
- Our k3 is expm1(d) - d, TRL's exp(d) - d - 1: equal up to rounding, which is the tolerance here.
"""

from collections import defaultdict
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from rlsgd.functional.aggregation import aggregate, aggregation_count
from rlsgd.functional.kl import kl_penalty
from rlsgd.functional.masked import masked_mean
from tests.helpers.clipping import clip_fractions, clipped_policy_loss

pytest.importorskip("trl")
from trl.trainer.grpo_trainer import GRPOTrainer

VOCABULARY = 7
BUDGET = 9
CLIP_LOW = 0.2
MODES = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
}
EXACT = {"rtol": 0, "atol": 1e-15}


def policy_logprobs(parameter, input_ids, completion_tokens):
    """A bigram policy: row `i` of the parameter [V, V] holds the logits after token `i`."""
    logprobs = parameter[input_ids[:, :-1]].log_softmax(-1)
    picked = logprobs.gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    return picked[:, -completion_tokens:]


def our_loss(logprobs, batch, *, aggregation, denominator, kl_coef, estimator="k3", **clip):
    """This microbatch's share of the loss."""
    mask = batch["mask"]
    per_token = clipped_policy_loss(
        logprobs, batch["old_logprobs"], batch["advantages"], mask, **clip
    )
    if kl_coef:
        per_token = per_token + kl_coef * kl_penalty(
            logprobs,
            batch["ref_logprobs"],
            mask,
            estimator=estimator,
            old_logprobs=batch["old_logprobs"],
        )
    return aggregate(
        per_token,
        mask,
        mode=aggregation,
        denominator=denominator,
        max_completion_tokens=BUDGET,
    )


def trl_loss_and_metrics(logprobs, batch, *, loss_type, kl_coef, clip_high, dual_clip, **window):
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            logprobs,
            torch.zeros_like(logprobs),
            None,
        ),
        _metrics=metrics,
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        args=SimpleNamespace(
            delta=dual_clip,
            steps_per_generation=window["parts"],
            use_bias_correction_kl=window.get("corrected", False),
        ),
        aux_loss_enabled=False,
        beta=kl_coef,
        current_gradient_accumulation_steps=window["parts"],
        epsilon_high=clip_high,
        epsilon_low=CLIP_LOW,
        importance_sampling_level="token",
        loss_type=loss_type,
        max_completion_length=BUDGET,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
    )
    inputs = {
        "prompt_ids": batch["input_ids"][:, :1],
        "prompt_mask": torch.ones_like(batch["input_ids"][:, :1]),
        "completion_ids": batch["input_ids"][:, 1:],
        "completion_mask": batch["mask"].long(),
        "advantages": batch["advantages"],
        "old_per_token_logps": batch["old_logprobs"],
        "ref_per_token_logps": batch["ref_logprobs"],
        "num_items_in_batch": window["tokens"],
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs), metrics["train"]


@pytest.fixture
def parameter():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)


@pytest.fixture
def microbatches(parameter):
    """Two ragged microbatches of three rows whose old and reference policies are other bigrams."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([8, 2, 5, 1, 3, 2])
    advantages = torch.tensor([1.2, -0.9, -0.4, 0.7, -1.1, 0.3], dtype=torch.float64)
    input_ids = torch.randint(0, VOCABULARY, (6, 9), generator=generator)
    mask = torch.arange(8) < lengths[:, None]

    def nearby(scale):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        return policy_logprobs(parameter + scale * noise, input_ids, 8)

    batch = {
        "input_ids": input_ids,
        "mask": mask,
        "advantages": advantages,
        "old_logprobs": nearby(0.6),
        "ref_logprobs": nearby(0.8),
    }
    return [
        {name: tensor[rows] for name, tensor in batch.items()} for rows in ([0, 1, 2], [3, 4, 5])
    ]


def denominators(microbatches, loss_type):
    counts = [aggregation_count(batch["mask"], MODES[loss_type]) for batch in microbatches]
    if loss_type == "bnpo":
        return [count * len(microbatches) for count in counts]
    return [torch.stack(counts).sum()] * len(microbatches)


def window_loss(parameter, microbatches, share_of):
    """Sum of the microbatches' losses, and its gradient, as an optimizer step sees them."""
    leaf = parameter.clone().requires_grad_()
    shares = []
    for index, batch in enumerate(microbatches):
        share = share_of(index, policy_logprobs(leaf, batch["input_ids"], 8), batch)
        share.backward()
        shares.append(share.detach())
    return torch.stack(shares).sum(), leaf.grad


def both(parameter, microbatches, loss_type, *, kl_coef, clip_high, dual_clip, corrected=False):
    ours = window_loss(
        parameter,
        microbatches,
        lambda index, logprobs, batch: our_loss(
            logprobs,
            batch,
            aggregation=MODES[loss_type],
            denominator=denominators(microbatches, loss_type)[index],
            kl_coef=kl_coef,
            estimator="k3-corrected" if corrected else "k3",
            clip_low=CLIP_LOW,
            clip_high=clip_high,
            dual_clip=dual_clip,
        ),
    )
    tokens = torch.stack([batch["mask"].sum() for batch in microbatches]).sum()
    theirs = window_loss(
        parameter,
        microbatches,
        lambda _, logprobs, batch: trl_loss_and_metrics(
            logprobs,
            batch,
            loss_type=loss_type,
            kl_coef=kl_coef,
            clip_high=clip_high,
            dual_clip=dual_clip,
            parts=len(microbatches),
            tokens=tokens,
            corrected=corrected,
        )[0],
    )
    return ours, theirs


def test_fixture_discriminates(parameter, microbatches):
    reached = defaultdict(int)
    for batch in microbatches:
        logprobs = policy_logprobs(parameter, batch["input_ids"], 8)
        ratio = (logprobs - batch["old_logprobs"]).exp()
        negative = (batch["advantages"] < 0)[:, None] & batch["mask"]
        positive = (batch["advantages"] > 0)[:, None] & batch["mask"]
        reached["dual clip"] += int((negative & (ratio > 1.5)).sum())
        reached["clip low"] += int((negative & (ratio < 0.8)).sum())
        reached["clip high"] += int((positive & (ratio > 1.28)).sum())
        reached["between the two upper bounds"] += int(
            (positive & (ratio > 1.2) & (ratio < 1.28)).sum()
        )
        reached["no clip"] += int((batch["mask"] & (ratio > 0.8) & (ratio < 1.2)).sum())
    assert all(reached.values()) and len(reached) == 5, dict(reached)
    options = {"kl_coef": 0.04, "clip_high": 0.2, "dual_clip": None}
    losses = {
        loss_type: both(parameter, microbatches, loss_type, **options)[1][0].item()
        for loss_type in MODES
    }
    assert abs(losses["bnpo"] - losses["dapo"]) > 1e-3
    values = sorted(losses.values())
    assert min(b - a for a, b in pairwise(values)) > 1e-3


@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("clip_high", [0.2, 0.28])
@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", MODES)
def test_loss_and_gradient_equal_trl(
    parameter, microbatches, loss_type, kl_coef, clip_high, dual_clip
):
    ours, theirs = both(
        parameter,
        microbatches,
        loss_type,
        kl_coef=kl_coef,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_each_option_changes_the_gradient(parameter, microbatches):
    """Otherwise the comparison above could not see an option that is ignored."""
    base = {"kl_coef": 0.0, "clip_high": 0.2, "dual_clip": None}
    (_, gradient), _ = both(parameter, microbatches, "dapo", **base)
    for option in ({"kl_coef": 0.04}, {"clip_high": 0.28}, {"dual_clip": 1.5}):
        (_, changed), _ = both(parameter, microbatches, "dapo", **(base | option))
        assert (changed - gradient).abs().max() > 1e-3


def test_corrected_kl_equals_trl(parameter, microbatches):
    options = {"kl_coef": 0.04, "clip_high": 0.2, "dual_clip": None}
    ours, theirs = both(parameter, microbatches, "dapo", corrected=True, **options)
    torch.testing.assert_close(ours, theirs, **EXACT)
    uncorrected, _ = both(parameter, microbatches, "dapo", **options)
    assert (ours[1] - uncorrected[1]).abs().max() > 1e-4


def test_clip_metrics_equal_trl(parameter, microbatches):
    options = {"kl_coef": 0.0, "clip_high": 0.28, "dual_clip": None}
    seen = []
    for batch in microbatches:
        logprobs = policy_logprobs(parameter, batch["input_ids"], 8)
        _, theirs = trl_loss_and_metrics(
            logprobs, batch, loss_type="grpo", parts=1, tokens=torch.tensor(1), **options
        )
        ours = clip_fractions(
            logprobs, batch["old_logprobs"], batch["advantages"], batch["mask"], CLIP_LOW, 0.28
        )
        for name, clipped in ours.items():
            seen.append(masked_mean(clipped, batch["mask"]).item())
            assert theirs[name] == pytest.approx([seen[-1]], rel=1e-7)
    assert len({fraction for fraction in seen if fraction > 0}) > 2


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo"])
def test_empty_rows_count_in_trl_only(parameter, microbatches, loss_type):
    microbatches[1]["mask"][0] = False  # 5 of the 6 rows are left
    ours, theirs = both(
        parameter, microbatches, loss_type, kl_coef=0.04, clip_high=0.2, dual_clip=None
    )
    for our_part, their_part in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_part * 5 / 6, their_part, **EXACT)
