"""A policy that really takes steps on the CPU, and what torch's allocator hands out meanwhile."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from rlsgd.core.types import TokenBatch
from rlsgd.models.loading import load_policy
from rlsgd.models.scoring import completion_logprobs
from rlsgd.models.shared_prompts import share_prompts
from rlsgd.optimizers.roles import mark_roles

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("torch.optim.SGD", {}),
    "SGD-momentum": ("torch.optim.SGD", {"momentum": 0.9}),
    "RMSprop": ("torch.optim.RMSprop", {}),
    "AdamW": ("torch.optim.AdamW", {}),
    "SignSGD": ("rlsgd.optimizers.SignSGD", {}),
    "SGDLL": ("rlsgd.optimizers.SGDLL", {}),
    "MuonWithAdamW": ("rlsgd.optimizers.MuonWithAdamW", {}),
    "FusedBackwardSGD": ("rlsgd.optimizers.FusedBackwardSGD", {}),
}


class Allocations:
    """Largest sum of live allocations made in the block, in each phase of it."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}

    @staticmethod
    def phase(name: str) -> record_function:
        return record_function(f"phase {name}")

    def read(self, profiled: profile) -> None:
        assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
        events = profiled.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        for event in events:
            if event.name().startswith("phase "):
                live, peak = 0, 0
                for time, nbytes in changes:
                    live += nbytes if time <= event.end_ns() else 0
                    peak = max(peak, live) if time >= event.start_ns() else live
                name = event.name().removeprefix("phase ")
                self.peaks[name] = max(peak, self.peaks.get(name, 0))


@contextmanager
def allocations() -> Iterator[Allocations]:
    """Profile the block, which must not free anything that was there before."""
    found = Allocations()
    gc.collect()  # or what earlier tests left behind would be freed inside
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        yield found
    found.read(profiled)


def random_rollouts(
    rows: int, prompt: int, completion: int, *, group_size: int = 1, padded: bool = True
) -> TokenBatch:
    """All completions are full; the first rows' prompt is shorter where there is padding."""
    mask = torch.ones(rows, prompt + completion, dtype=torch.bool)
    mask[:group_size, :2] = not padded
    scored = torch.zeros_like(mask)
    scored[:, prompt:] = True
    ids = torch.randint(2, 14, mask.shape)
    ids[:, :prompt] = ids[::group_size, :prompt].repeat_interleave(group_size, 0)
    ids[:, 0] = torch.arange(2, 2 + rows // group_size).repeat_interleave(group_size)  # all differ
    return TokenBatch(input_ids=ids, attention_mask=mask, completion_mask=scored)


def peaks_of_steps(
    folder: str | Path,
    make: Any,
    batch: TokenBatch,
    *,
    shared: bool = False,
    checkpointing: bool = False,
    microbatches: int = 1,
) -> dict[str, int]:
    """Peaks of `forward`, `backward` and `step` in the second of two steps, from loading on.

    A step has `microbatches` passes over the batch.
    """
    with allocations() as found:
        policy = load_policy(str(folder))
        if shared:
            share_prompts(policy)
        if checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        mark_roles(policy)
        optimizer = make(policy.parameters())

        def closure(name: str) -> None:
            for index in range(microbatches):
                with found.phase(f"{name}forward"):
                    logprobs, _ = completion_logprobs(
                        policy, batch, temperature=1.0, with_entropy=True
                    )
                    loss = -logprobs.sum()
                    del logprobs
                if index == 0:
                    optimizer.zero_grad()
                with found.phase(f"{name}backward"):
                    loss.backward()

        for name in ("first ", ""):
            if hasattr(optimizer, "measure_norm"):  # it steps inside the backward pass
                optimizer.step(lambda name=name: closure(name))
            else:
                closure(name)
                with found.phase(f"{name}step"):
                    optimizer.step()
    return {name: peak for name, peak in found.peaks.items() if not name.startswith("first")}
