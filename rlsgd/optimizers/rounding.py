"""Weights that float32 tensors hold and that bfloat16 can represent.

Storing weights in bfloat16 rounds every update, and an update below half the distance between two
neighbours is lost (nearest) or applied now and then (stochastic, arXiv:2502.20566). Rounding the
weights after each step is just that. Everything else stays float32, so nothing but the storage
differs from a float32 run, and a CPU computes it fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

Rounding = Literal["nearest", "stochastic"]


def round_nearest(values: Tensor) -> Tensor:
    """The nearest bfloat16 numbers, ties to even, as float32."""
    return values.bfloat16().float()


def round_stochastic(values: Tensor, generator: torch.Generator) -> Tensor:
    """One of the two bfloat16 neighbours of each float32 value, such that the mean is the value.

    Sixteen random bits are added to those that bfloat16 lacks, and the sum of both is cut off. The
    carry goes away from zero, in proportion to the distance from the neighbour on zero's side. A
    value that bfloat16 has stays, and so do inf and nan.
    """
    bits = values.view(torch.int32)
    noise = torch.randint(
        1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    rounded = (noise.add_(bits)).bitwise_and_(-(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values)


@torch.no_grad()
def round_weights(
    parameters: Iterable[Tensor],
    rounding: Rounding = "nearest",
    seed: Callable[..., int] | None = None,
) -> None:
    """Round float32 parameters to bfloat16 numbers in place, one tensor at a time; never buffers.

    Args:
        parameters: in an order that is the same in every process.
        rounding: `nearest` or `stochastic`.
        seed: for stochastic rounding, called with the parameter's number and, where it is sharded,
            the place of this rank's shard. Replicas then draw the same numbers and stay equal,
            shards draw different ones. The numbers depend on the kind of device.

    Raises:
        ValueError: a parameter is not float32.
    """
    for number, parameter in enumerate(parameters):
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"--model.weight_rounding {rounding} needs float32 weights, not {parameter.dtype}:"
                " set --trainer.precision to 32-true or bf16-mixed"
            )
        shard = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if rounding == "nearest":
            shard.copy_(round_nearest(shard))
        else:
            assert seed is not None, "stochastic rounding draws numbers"
            generator = torch.Generator(shard.device)
            generator.manual_seed(seed(number, *_offset(parameter)))
            shard.copy_(round_stochastic(shard, generator))


def _offset(parameter: Tensor) -> tuple[int, ...]:
    """Index of the first entry of this rank's shard; nothing for a tensor that is not sharded."""
    if not isinstance(parameter, DTensor):
        return ()
    _, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return tuple(offset)


def keep_rounded(
    optimizer: Optimizer, rounding: Rounding, seed: Callable[..., int] | None = None
) -> None:
    """Round all parameters of an optimizer, now to the nearest, and after each of its steps.

    The optimizer is otherwise as before: its state, state dict and learning rates. `seed` must
    differ from step to step, and be the same again for a step that a resumed run repeats.
    """

    def parameters() -> Iterator[Tensor]:
        return (p for group in optimizer.param_groups for p in group["params"])

    def after_step(*_: object) -> None:
        round_weights(parameters(), rounding, seed)

    round_weights(parameters())
    optimizer.register_step_post_hook(after_step)
