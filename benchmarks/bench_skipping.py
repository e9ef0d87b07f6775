"""Time of an update where a share of the completions has no gradient, against one where all have.

    python -m benchmarks.bench_skipping [--model FOLDER] [--groups 8] [--turns 5]

Forward and backward of `RLModule.training_step` as the loader feeds it, on random completions; in
turns, the smallest of each, since another job only ever adds. `limit` is (1 - z) + 5%.
"""

from __future__ import annotations

import argparse
import time
from types import SimpleNamespace
from typing import Any, cast

import torch

from rlsgd.algorithms import GRPO
from rlsgd.core.types import Experience
from rlsgd.models.scoring import prove_scoring
from rlsgd.rollout.loader import ExperienceLoader
from rlsgd.study.results import machine

GROUP_SIZE, PROMPT_TOKENS, COMPLETION_TOKENS = 8, 32, 48
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def experience(groups: int, idle: int, vocabulary: int) -> Experience:
    """Random completions; the first `idle` groups have advantage 0."""
    rows, width = groups * GROUP_SIZE, PROMPT_TOKENS + COMPLETION_TOKENS
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, vocabulary, (rows, width), generator=generator)
    prompts = ids[::GROUP_SIZE, :PROMPT_TOKENS].repeat_interleave(GROUP_SIZE, 0)
    ids[:, :PROMPT_TOKENS] = prompts
    mask = (torch.arange(width) >= PROMPT_TOKENS).expand(rows, -1).clone()
    advantages = torch.where(torch.arange(rows) % 2 == 0, 1.0, -1.0)
    advantages[: idle * GROUP_SIZE] = 0.0
    return Experience(
        input_ids=ids,
        attention_mask=torch.ones_like(mask),
        completion_mask=mask,
        truncated=torch.ones(rows, dtype=torch.bool),
        sampled_entropy=torch.ones(mask.shape),
        rewards=torch.zeros(rows),
        advantages=advantages,
        idle=advantages == 0,
    )


def seconds(module: Any, trainer: Any, rollout: Experience) -> float:
    """Of all microbatches of one update."""
    module.rollout = lambda *_: rollout
    module.policy.zero_grad()
    began = time.perf_counter()
    for batch in ExperienceLoader(trainer.datamodule, trainer):
        module.loss(batch).backward()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="An update with groups that were scored alike.")
    parser.add_argument("--model", default="embedded", help="folder or name of a model")
    parser.add_argument("--groups", type=int, default=8, help="prompts of the rollout")
    parser.add_argument("--accumulate", type=int, default=1, help="microbatches of the update")
    parser.add_argument("--turns", type=int, default=5, help="updates measured of each share")
    parser.add_argument("--onednn", action="store_true", help="oneDNN for linear layers")
    given = parser.parse_args()
    module: Any = GRPO(
        policy=given.model, onednn=given.onednn, max_completion_tokens=COMPLETION_TOKENS
    )
    module.configure_model()
    module.log_share = lambda *_: None
    prove_scoring(module.policy)
    data = SimpleNamespace(
        group_size=GROUP_SIZE,
        prompts_per_epoch=given.groups,
        max_prompt_tokens=PROMPT_TOKENS,
        prompts=lambda *_, **__: [],
    )
    trainer = cast(
        Any,
        SimpleNamespace(
            lightning_module=module,
            datamodule=data,
            world_size=1,
            global_rank=0,
            current_epoch=0,
            accumulate_grad_batches=given.accumulate,
        ),
    )
    module._trainer = trainer
    vocabulary = module.policy.config.get_text_config().vocab_size
    rollouts = {s: experience(given.groups, round(s * given.groups), vocabulary) for s in SHARES}
    times: dict[float, list[float]] = {share: [] for share in SHARES}
    for turn in range(given.turns + 1):
        for share, rollout in rollouts.items():
            spent = seconds(module, trainer, rollout)
            if turn:  # the first one warms up
                times[share].append(spent)
    whole = min(times[0.0])
    where = f"{machine()['processor']}, {torch.get_num_threads()} threads"
    print(f"{where}, {given.model}, best of {given.turns}")
    print("| without gradient | update | of the whole | limit |\n|---|---|---|---|")
    for share, measured in times.items():
        ratio = min(measured) / whole
        print(f"| {share:.0%} | {min(measured):.3f} s | {ratio:.3f} | {1 - share + 0.05:.2f} |")


if __name__ == "__main__":
    main()
