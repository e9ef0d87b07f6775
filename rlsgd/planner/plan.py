"""A plan: the bytes of every term on one GPU, at each moment of an iteration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlsgd.planner.activations import (
    activation_bytes,
    cast_bytes,
    layer_bytes,
    logit_peak_bytes,
    saved_logit_bytes,
)
from rlsgd.planner.architecture import Architecture
from rlsgd.planner.optimizers import OptimizerSize
from rlsgd.planner.sampling import engine_bytes, own_sampling_bytes
from rlsgd.planner.setup import Setup

Parts = dict[str, int]


@dataclass(frozen=True)
class Plan:
    """Bytes on one GPU.

    Args:
        setup: as it was planned.
        moments: what exists together at each moment of an iteration, term by term.
    """

    setup: Setup
    moments: dict[str, Parts]

    @property
    def peaks(self) -> dict[str, int]:
        """All bytes of each moment."""
        return {name: sum(parts.values()) for name, parts in self.moments.items()}

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    @property
    def peak_moment(self) -> str:
        return max(self.peaks, key=lambda name: self.peaks[name])

    @property
    def terms(self) -> Parts:
        """The most that each term takes at any moment."""
        largest: Parts = {}
        for parts in self.moments.values():
            for name, size in parts.items():
                largest[name] = max(size, largest.get(name, 0))
        return largest


def plan(model: Architecture, optimizer: OptimizerSize, setup: Setup) -> Plan:
    """Bytes of every term at each moment, on the GPU that holds most.

    Held throughout, for p weights on this GPU (p / n under FSDP2, each first axis rounded up) of w
    bytes: `weights` w p; `optimizer state` as measured by `rlsgd.planner.optimizers`; `reference`
    w p; `critic` its weights and state (its gradients are in `gradients`); an engine's weights and
    KV cache; and under DDP its buckets, a second copy of all gradients, as `communication`. Then:

    - `prefill` and `decoding` by the policy itself (`rlsgd.planner.sampling`), or `rollout` by an
      engine: gradients of the last step, which Lightning frees when the next backward pass begins.
    - `forward` ends: those gradients; activations and casts (`rlsgd.planner.activations`); the most
      that logits take, while the entropy is measured; under FSDP2 gathered weights.
    - `backward` begins: gradients of earlier microbatches alone; activations and casts; kept logits
      and their gradient, twice 4 B K V; the head's gradient.
    - `backward end`: all gradients. The gradient of a tied matrix is the sum of two, one for each
      use, which exist beside it; where gradients accumulate, the largest one exists beside its sum.
    - `step`: gradients, and what the step needs meanwhile.

    Under FSDP2 whole gradients have the dtype of compute, and one of each is in `communication`.
    Activations and logits are left out where `model.decoder` is none.

    Raises:
        ValueError: the optimizer cannot train under this strategy.
    """
    if optimizer.fused and setup.gpus > setup.shards:
        raise ValueError(
            f"--strategy ddp: {optimizer.class_name} applies gradients before DDP could average "
            "them; use fsdp"
        )
    if optimizer.fused:
        setup = replace(setup, microbatch=setup.minibatch)
    shards, batch, w = setup.shards, setup.batch, optimizer.item
    assert w == setup.dtypes.weight
    models = [model, model.critic()] if setup.critic else [model]
    weights, gradients, states = (
        [w * part.held(shards) for part in models],
        [optimizer.gradient_bytes(part, shards) for part in models],
        [optimizer.state_bytes(part, shards) for part in models],
    )
    held = {
        "weights": weights[0],
        "optimizer state": states[0],
        "reference": weights[0] * setup.reference,
        "critic": sum(weights[1:]) + sum(states[1:]),
    }
    if setup.gpus > 1 and not setup.sharded:
        held["communication"] = sum(w * part.num_weights for part in models)
    if setup.sampler == "VLLMSampler":
        held |= engine_bytes(model, setup)
    there = {"gradients": sum(gradients)}
    left = {} if optimizer.fused else there
    accumulated = there if setup.accumulates and not optimizer.fused else {}
    passing = _passing(models, setup)
    activations, recomputed = _activations(models, setup)
    known = model.decoder is not None
    columns = 4 * batch.rows * batch.scored * model.vocabulary * known
    whole = setup.dtypes.compute if setup.sharded else w
    largest = w * max(weight.shard(shards) for weight in model.weights)
    at_end = 2 * whole * model.tied_numel + largest * bool(accumulated)
    rollout: dict[str, Parts] = {"rollout": {}}
    if setup.sampler == "HFSampler":
        rollout = own_sampling_bytes(model, setup)
    moments = {
        **{name: left | sampling for name, sampling in rollout.items()},
        "forward": left
        | passing
        | {
            "activations": activations,
            "logits": logit_peak_bytes(model, batch, setup.dtypes, setup.temperature) * known,
        },
        "backward": accumulated
        | passing
        | {
            "activations": activations + recomputed,
            "logits": saved_logit_bytes(model, batch) * known + 2 * columns,
            "gradient workspace": w * model.head_numel * (not setup.sharded),
        },
        "backward end": there | passing | {"gradient workspace": at_end},
        "step": there
        | {
            "step workspace": max(
                optimizer.workspace_bytes(part, shards, one_by_one=setup.accelerator == "cpu")
                for part in models
            )
        },
    }
    return Plan(setup, {name: _joined(held, parts) for name, parts in moments.items()})


def smallest_gpus(
    model: Architecture, optimizer: OptimizerSize, setup: Setup, gpu_bytes: float
) -> int | None:
    """The fewest GPUs whose memory holds the peak, sharded by FSDP2 from two on.

    The microbatch stays as it is and the prompts are shared out evenly, so that only divisors of
    `prompts_per_epoch` can be; none where no number fits.
    """
    prompts = setup.prompts_per_epoch
    for gpus in (n for n in range(1, prompts + 1) if prompts % n == 0):
        tried = replace(setup, gpus=gpus, strategy="fsdp")
        if plan(model, optimizer, tried).peak <= gpu_bytes:
            return gpus
    return None


def _joined(held: Parts, parts: Parts) -> Parts:
    """Terms of both, without those that are 0."""
    names = held | parts
    sums = {name: held.get(name, 0) + parts.get(name, 0) for name in names}
    return {name: size for name, size in sums.items() if size}


def _activations(models: list[Architecture], setup: Setup) -> tuple[int, int]:
    """Of policy and critic, which share a backward pass; and of one layer computed again in it."""
    if models[0].decoder is None:
        return 0, 0
    batch, dtypes, again = setup.batch, setup.dtypes, setup.activation_checkpointing
    seen = [replace(batch, scored=batch.scored if part.vocabulary else 0) for part in models]
    kept = sum(
        activation_bytes(part, part_batch, dtypes, checkpointing=again)
        for part, part_batch in zip(models, seen, strict=True)
    )
    return kept, layer_bytes(models[0], batch, dtypes) if again else 0


def _passing(models: list[Architecture], setup: Setup) -> Parts:
    """Copies of weights and gradients during forward and backward passes.

    Autocast's bfloat16 copies of the linear layers' weights. Under FSDP2 instead: the root group
    (R: embedding, head, last norm) stays gathered, two layers (S each) are at a time, the next
    while one computes: c (R + 2 S). Gradients are whole until they are reduced, the root's until
    the end: c (R + S), and their float32 input to the reduction: 4 max(R, S).
    """
    dtypes = setup.dtypes
    if not setup.sharded:
        return {"bf16 copies": sum(cast_bytes(part, dtypes) for part in models)}
    total = 0
    for part in models:
        root = sum(weight.numel for weight in part.weights if weight.layer is None)
        layer = sum(weight.numel for weight in part.weights if weight.layer == 0)
        total += dtypes.compute * (2 * root + 3 * layer) + 4 * max(root, layer)
    return {"communication": total}
