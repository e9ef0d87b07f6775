"""Measures what sharing prompts saves in an update, for long prompts and for long completions.

    python -m benchmarks.bench_sharing --json sharing.json
    python -m benchmarks.bench_tables docs/performance.md sharing.json

Forward and backward of the log-probabilities of four groups of eight completions, 160 tokens each
with their prompt, under a Qwen3 of 50 million random weights: with prompts computed for every
completion and once for a group, in turns. SmolLM2's tokenizer is needed
(once before: rlsgd data prepare smollm2). Some five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.bench_cases import model_folder
from benchmarks.bench_limit import Shape, needed
from benchmarks.bench_tables import print_tables
from rlsgd.core.types import TokenBatch
from rlsgd.models.loading import load_policy
from rlsgd.models.scoring import completion_logprobs
from rlsgd.models.shared_prompts import share_prompts

MODEL, PROMPTS, GROUP, TOKENS = "qwen3_50m", 4, 8, 160
RATIOS = {"4:1": 128, "1:1": 80, "1:4": 32}  # prompt tokens to completion tokens


def rollouts(prompt_tokens: int) -> TokenBatch:
    """Four random groups."""
    rows = PROMPTS * GROUP
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(2, 1000, (PROMPTS, prompt_tokens), generator=generator)
    completions = torch.randint(2, 1000, (rows, TOKENS - prompt_tokens), generator=generator)
    input_ids = torch.cat([prompts.repeat_interleave(GROUP, 0), completions], 1)
    mask = torch.ones_like(input_ids, dtype=torch.bool)
    scored = mask.clone()
    scored[:, :prompt_tokens] = False
    return TokenBatch(input_ids, mask, scored)


def update_seconds(model: Any, batch: TokenBatch) -> float:
    """Of one forward and backward pass."""
    model.zero_grad()
    start = time.perf_counter()
    logprobs, _ = completion_logprobs(model, batch, temperature=1.0, with_entropy=True)
    logprobs.sum().backward()
    return time.perf_counter() - start


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"repeats": options.repeats, "threads": options.threads, "sharing": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(MODEL, Path(scratch))
        apart, shared = load_policy(folder), load_policy(folder)
        share_prompts(shared)
        for ratio, prompt_tokens in RATIOS.items():
            batch = rollouts(prompt_tokens)
            pairs = [
                (update_seconds(apart, batch), update_seconds(shared, batch))
                for _ in track(range(options.repeats + 1), f"{ratio} ")
            ][1:]
            sizes = ([prompt_tokens] * PROMPTS, GROUP, TOKENS - prompt_tokens)
            operations = [
                needed(Shape.of(folder), *sizes, shared=share)["update"] for share in (False, True)
            ]
            found["sharing"].append(
                {
                    "ratio": ratio,
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": TOKENS - prompt_tokens,
                    "seconds_apart": median(pair[0] for pair in pairs),
                    "seconds_shared": median(pair[1] for pair in pairs),
                    "ratios": [pair[1] / pair[0] for pair in pairs],
                    "operations": operations[1] / operations[0],
                }
            )
    print_tables(Console(), ["sharing"], found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
