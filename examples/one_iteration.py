"""GRPO with plain SGD, whole: what `rlsgd fit` does in an iteration, in one file to read downwards.

It teaches the embedded model, half a million weights, to add two numbers: sample a group of answers
to each question, reward the right ones, compare each with its group, take one step. There is no
Lightning, no cache of keys and no class. It runs on a CPU in seconds:

    python examples/one_iteration.py

`rlsgd fit` with the same settings ends with the same weights, bit for bit
(tests/test_one_iteration.py).
"""

from __future__ import annotations

import argparse
import hashlib
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlsgd
from rlsgd.functional.advantages import group_relative
from rlsgd.functional.aggregation import aggregate, aggregation_count
from rlsgd.functional.head_logprobs import head_logprobs
from rlsgd.functional.logprobs import draw_tokens, policy_ratio
from rlsgd.functional.losses import Clip

EMBEDDED = Path(rlsgd.__file__).parent / "assets" / "embedded"
SEED = 0
PROMPTS = 32  # of an iteration
GROUP_SIZE = 8  # completions of each
MAX_COMPLETION_TOKENS = 6
LEARNING_RATE = 3e-3
MAX_GRAD_NORM = 1.0
CLIP = Clip(clip_low=0.2, clip_high=0.2)


def sums(iteration: int) -> list[tuple[str, str]]:
    """Questions and answers of an iteration: another draw each time, the same in every run."""
    draw = random.Random(f"{SEED}/{iteration}")
    pairs = [(draw.randint(10, 99), draw.randint(10, 99)) for _ in range(PROMPTS)]
    return [(f"Calculate {a} + {b}.", str(a + b)) for a, b in pairs]


def load() -> tuple[Any, Any]:
    """Tokenizer and policy, in float32. It has no dropout, so the policy that samples is the very
    policy that is updated."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    policy = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    return tokenizer, policy


def left_padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] with padding on the left, and where they are none [B, T] (bool)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def positions_of(mask: Tensor) -> Tensor:
    """Position ids [B, T] that count real tokens, so that padding changes nothing."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def sample(
    policy: Any, ids: Tensor, mask: Tensor, *, eos: int, pad: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Complete prompts [B, P] token by token, from the policy's own distribution.

    A token is drawn by inverting the cumulative distribution with one uniform number for each row.

    Returns:
        ids [B, T], attention mask [B, T], and completion mask [B, T]: the tokens that were drawn,
        up to the first end-of-sequence token, which counts.
    """
    generator = torch.Generator().manual_seed(seed)
    completion_mask = torch.zeros_like(mask)
    alive = torch.ones(len(ids), dtype=torch.bool)
    for _ in range(MAX_COMPLETION_TOKENS):
        output = policy(ids, attention_mask=mask.long(), position_ids=positions_of(mask))
        uniforms = torch.rand(len(ids), dtype=torch.float64, generator=generator)
        tokens = draw_tokens(output.logits[:, -1], uniforms)
        tokens = torch.where(alive, tokens, pad)
        ids = torch.cat([ids, tokens[:, None]], 1)
        mask = torch.cat([mask, alive[:, None]], 1)
        completion_mask = torch.cat([completion_mask, alive[:, None]], 1)
        alive = alive & (tokens != eos)
        if not alive.any():
            break
    return ids, mask, completion_mask


def completion_logprobs(policy: Any, ids: Tensor, mask: Tensor, completion_mask: Tensor) -> Tensor:
    """Log-probability of each completion token [B, T], 0 elsewhere, with gradient.

    The token in column t is predicted in column t - 1, and the head sees those columns alone.
    """
    before = completion_mask[:, 1:].any(0).nonzero().squeeze(1)  # columns that predict something
    width = int(before[-1]) + 1
    hidden = policy.model(
        ids[:, :width],
        attention_mask=mask[:, :width].long(),
        position_ids=positions_of(mask)[:, :width],
        use_cache=False,
    ).last_hidden_state[:, before]
    predictors = hidden[completion_mask[:, before + 1]]
    logprobs, _ = head_logprobs(predictors, policy.lm_head.weight, ids[completion_mask])
    return torch.zeros(ids.shape).masked_scatter(completion_mask, logprobs)


def derived_seed(*parts: int | str) -> int:
    """A seed of its own for every purpose and iteration."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def run(iterations: int) -> dict[str, Tensor]:
    """Train, print a line for each iteration, and return the weights."""
    tokenizer, policy = load()
    start = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    optimizer = torch.optim.SGD(policy.parameters(), lr=LEARNING_RATE)

    for iteration in range(iterations):
        # --- prompts: each is repeated for its group
        problems = sums(iteration)
        rows = [tokenizer(question)["input_ids"] for question, _ in problems]
        ids, mask = left_padded(rows, tokenizer.pad_token_id)
        ids, mask = ids.repeat_interleave(GROUP_SIZE, 0), mask.repeat_interleave(GROUP_SIZE, 0)

        # --- sampling
        ids, mask, completion_mask = sample(
            policy,
            ids,
            mask,
            eos=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
            seed=derived_seed(SEED, "rollout", iteration, 0),
        )
        completions = [
            tokenizer.decode(row[drawn], skip_special_tokens=True)
            for row, drawn in zip(ids, completion_mask, strict=True)
        ]

        # --- reward: 1 for the right number
        answers = [answer for _, answer in problems for _ in range(GROUP_SIZE)]
        right = [text.strip() == answer for text, answer in zip(completions, answers, strict=True)]
        rewards = torch.tensor(right, dtype=torch.float32)

        # --- advantages: against the mean of the group, in units of its standard deviation
        advantages = group_relative(rewards, GROUP_SIZE)

        # --- completions of advantage 0 count in the denominator, and need no forward pass
        denominator = aggregation_count(completion_mask, "token-mean")
        rows = advantages != 0
        if not rows.any():
            continue  # the gradient is 0, and so is the step of plain SGD
        used = mask[rows].any(0)  # columns that are not padding in all of them
        ids, mask, completion_mask = (x[rows][:, used] for x in (ids, mask, completion_mask))

        # --- loss: with one update from each rollout the policy that sampled is the present one, so
        # the ratio is 1 and nothing is clipped; the gradient is -advantage * grad log-probability
        logprobs = completion_logprobs(policy, ids, mask, completion_mask)
        ratio = policy_ratio(logprobs, logprobs.detach(), completion_mask)
        loss = aggregate(
            CLIP.loss(ratio, advantages[rows], completion_mask),
            completion_mask,
            mode="token-mean",
            denominator=denominator,
        )

        # --- step
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        optimizer.step()

        # --- update sparsity: the share of weights that are what they were before training
        same = sum(int((p == start[n]).sum()) for n, p in policy.named_parameters())
        total = sum(weight.numel() for weight in start.values())
        print(
            f"iteration {iteration + 1}  reward {rewards.mean():.4f}  loss {loss.item():.6f}  "
            f"grad norm {norm:.3f}  unchanged weights {100 * same / total:.2f}%"
        )
    return {name: weight.detach() for name, weight in policy.named_parameters()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="GRPO with SGD on the embedded model.")
    parser.add_argument("--iterations", type=int, default=5, help="rollouts, each with one step")
    run(parser.parse_args().iterations)
