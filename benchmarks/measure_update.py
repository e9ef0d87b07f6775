"""Measure what one update of SGD takes of memory beside the weights.

    python -m benchmarks.measure_update docs/performance/update_memory.json

On the CPU in float32, of SmolLM2-135M-Instruct (once before: rlsgd data prepare smollm2): four
completions of one prompt in one microbatch, 128 tokens each, half of them the prompt; their
log-probabilities as training takes them, and three steps. Plain and fused SGD, with and without
activation checkpointing, prompts computed for each completion or once.

Recorded is by how much the largest resident set exceeds the one just before the model is loaded, in
a fresh process for each case (Linux): while the model is loaded, in forward passes, in backward
passes and in steps; `ratio` is the most of the last three over the bytes of the weights. Between
steps plain SGD keeps its gradients, which training frees just before the next backward pass.

All of it twice. With MALLOC_MMAP_THRESHOLD_=131072 (`mmap_threshold`) glibc gives freed tensors
back at once, so that what is resident is what exists; `rlsgd memory` is tested against it. Without,
its threshold grows to 32 MiB, and what is freed below it stays resident.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers.models.llama.modeling_llama  # noqa: F401  # for the processes to come
from torch import Tensor

from benchmarks.measure_memory import MODEL, RESET, resident
from rlsgd.core.types import TokenBatch
from rlsgd.models.loading import load_policy
from rlsgd.models.scoring import completion_logprobs
from rlsgd.models.shared_prompts import share_prompts
from rlsgd.optimizers import FusedBackwardSGD

ROWS, PROMPT_TOKENS, COMPLETION_TOKENS = 4, 64, 64
VARIABLE, THRESHOLDS = "MALLOC_MMAP_THRESHOLD_", (131072, None)
STEPS, LEARNING_RATE = 3, 1e-3
OPTIMIZERS: dict[str, Any] = {"FusedBackwardSGD": FusedBackwardSGD, "SGD": torch.optim.SGD}


def completions_of_one_prompt() -> TokenBatch:
    """Random tokens; nothing is padding."""
    shape = (ROWS, PROMPT_TOKENS + COMPLETION_TOKENS)
    ids = torch.randint(10, 40_000, shape, generator=torch.Generator().manual_seed(0))
    ids[:, :PROMPT_TOKENS] = ids[0, :PROMPT_TOKENS]
    scored = torch.zeros(shape, dtype=torch.bool)
    scored[:, PROMPT_TOKENS:] = True
    return TokenBatch(ids, torch.ones_like(scored), scored)


def measure(optimizer: str, checkpointing: bool, shared: bool) -> dict[str, Any]:
    """Three updates in this process."""
    batch = completions_of_one_prompt()
    peaks: dict[str, int] = {}
    before = resident("VmRSS")

    def mark(moment: str) -> None:
        """What the largest resident set was since the last mark belongs to `moment`."""
        peaks[moment] = max(peaks.get(moment, 0), resident("VmHWM") - before)
        RESET.write_text("5")  # the largest is now the present one

    RESET.write_text("5")
    policy = load_policy(MODEL)
    mark("load")
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    if shared:
        share_prompts(policy)
    steps = OPTIMIZERS[optimizer](policy.parameters(), lr=LEARNING_RATE)

    def closure() -> Tensor:
        logprobs, _ = completion_logprobs(policy, batch, temperature=1.0, with_entropy=True)
        loss = -logprobs.sum() / batch.completion_mask.sum()
        mark("forward")
        steps.zero_grad()
        loss.backward()
        mark("backward")
        return loss

    for _ in range(STEPS):
        steps.step(closure)
        mark("step")
    weights = sum(parameter.nbytes for parameter in policy.parameters())
    most = max(peaks[moment] for moment in ("forward", "backward", "step"))
    return {
        "optimizer": optimizer,
        "activation_checkpointing": checkpointing,
        "share_prompts": shared,
        "weights": weights,
        "resident_peaks": peaks,
        "ratio": round(most / weights, 4),
    }


def in_a_process(*case: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        if (child := os.fork()) == 0:  # has all code already, so that none of it is counted
            torch.set_num_threads(1)
            found.write_text(json.dumps(measure(*case)))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, case
        return json.loads(found.read_text())


def measure_cases(out: Path) -> None:
    """Add all cases to the record, under the allocator that this process was started with."""
    threshold = os.environ.get(VARIABLE)
    record = json.loads(out.read_text())
    for case in product(OPTIMIZERS, (False, True), (False, True)):
        found = {"mmap_threshold": threshold and int(threshold), **in_a_process(*case)}
        record["cases"].append(found)
        print(found, flush=True)
        out.write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    out = Path(sys.argv[1])
    if sys.argv[2:] == ["cases"]:
        measure_cases(out)
        return
    record = {
        "model": MODEL,
        "rows": ROWS,
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": COMPLETION_TOKENS,
        "cases": [],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    for threshold in THRESHOLDS:  # read when a process starts
        environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
        if threshold is not None:
            environment[VARIABLE] = str(threshold)
        command = [sys.executable, "-m", "benchmarks.measure_update", str(out), "cases"]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
