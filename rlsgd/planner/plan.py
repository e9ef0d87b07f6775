"""A plan: the bytes of every term on one GPU, at each moment of an iteration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlsgd.planner.architecture import Architecture
from rlsgd.planner.optimizers import OptimizerSize
from rlsgd.planner.passes import Parts, pass_moments
from rlsgd.planner.sampling import engine_bytes, own_sampling_bytes
from rlsgd.planner.setup import Setup


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
    KV cache, of which `one_copy` has the cache alone, during the rollout; and under DDP its
    buckets, a second copy of all gradients, as `communication`. Then:

    - `prefill` and `decoding` by the policy itself (`rlsgd.planner.sampling`), or `rollout` by an
      engine: gradients of the last step, which Lightning frees when the next backward pass begins.
    - `forward`, `backward`, `last layer`, `first layer`, `backward end`: see
      `rlsgd.planner.passes.pass_moments`.
    - `step`: gradients, unless the optimizer has freed them, and what the step needs meanwhile.

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
    shards, w = setup.shards, optimizer.item
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
    rollout: dict[str, Parts] = {"rollout": {}}
    if setup.one_copy:
        rollout["rollout"] = {"KV cache": engine_bytes(model, setup)["KV cache"]}
    elif setup.sampler == "VLLMSampler":
        held |= engine_bytes(model, setup)
    left = {} if optimizer.fused else {"gradients": sum(gradients)}
    if setup.sampler == "HFSampler":
        rollout = own_sampling_bytes(model, setup)
    moments = {
        **{name: left | sampling for name, sampling in rollout.items()},
        **pass_moments(models, optimizer, setup),
        "step": left
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
