"""Models in shards, one on each rank, by FSDP2 (torch's `fully_shard`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from rlsgd.core.distributed import local_shard


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Where shards live and how they are gathered.

    Args:
        mesh: one dimension, over all ranks that share the model.
        device: of this rank, where it computes.
        compute_dtype: dtype in which weights are gathered and used; none is the weights' own.
            Gradients are reduced in float32 whatever it is.
        cpu_offload: keep shards, gradients and optimizer states in host memory.
    """

    mesh: DeviceMesh
    device: torch.device
    compute_dtype: torch.dtype | None = None
    cpu_offload: bool = False


def shard(module: nn.Module, sharding: Sharding, layers: list[nn.Module]) -> None:
    """Shard every layer as a group that is gathered when it runs, then the rest as the root's.

    Tied embedding and head belong to the root, so that both are gathered together and stay one
    parameter. Every group is given back after forward, the root's too, which FSDP2 would keep: what
    is registered between two passes is then the shard, for optimizers, callbacks and checkpoints.

    Args:
        module: called as a whole, so that the root's hooks run.
        sharding: where to and how.
        layers: modules inside that run one after the other.
    """
    # autocast casts inputs where an operation wants it; rotary angles must stay float32
    policy = MixedPrecisionPolicy(
        param_dtype=sharding.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    pinned = sharding.device.type != "cpu"
    offload = CPUOffloadPolicy(pin_memory=pinned) if sharding.cpu_offload else OffloadPolicy()
    for part in (*layers, module):
        fully_shard(
            part,
            mesh=sharding.mesh,
            reshard_after_forward=True,
            mp_policy=policy,
            offload_policy=offload,
        )


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules made inside have parameters without storage, and buffers with their values."""

    def to_meta(_: nn.Module, __: str, parameter: Tensor | None) -> Any:
        if parameter is None or parameter.is_meta:
            return None  # as it is: a tied parameter stays one object
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def fill(
    module: nn.Module,
    sharding: Sharding,
    read: Callable[[str], Tensor],
    *,
    source_rank: int | None = None,
) -> None:
    """Give storage and values to a sharded module whose parameters are on the meta device.

    One tensor is held whole at a time.

    Args:
        module: its parameters and its persistent buffers are filled; other buffers keep their
            values.
        sharding: as it was sharded with.
        read: the value of a parameter or persistent buffer, by its name.
        source_rank: the rank that reads and sends the others their shards; none means that every
            rank reads for itself.
    """
    reads = source_rank in (None, dist.get_rank())

    def value_of(name: str, like: Tensor) -> Tensor:
        if not reads:
            return torch.empty(like.shape, dtype=like.dtype, device=sharding.device)
        return read(name).to(sharding.device, like.dtype)

    buffers = dict(module.named_buffers())
    persistent = module.state_dict().keys() & buffers.keys()
    module.to_empty(device="cpu" if sharding.cpu_offload else sharding.device)
    for name, buffer in buffers.items():
        value = buffer.to(sharding.device)
        if name in persistent:
            value = value_of(name, buffer)
            if source_rank is not None:
                dist.broadcast(value, source_rank)
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, value)
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, DTensor), f"{name} is not sharded"
        local_shard(parameter).copy_(
            local_shard(shard_like(parameter, value_of(name, parameter), source_rank=source_rank))
        )


def shard_like(parameter: DTensor, value: Tensor, *, source_rank: int | None = None) -> DTensor:
    """A whole tensor in the shards of `parameter`; every rank has it, or only `source_rank`."""
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=source_rank)


def is_sharded(module: nn.Module) -> bool:
    """Whether a forward pass of the module has to gather weights, so that every rank must join."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def compute_device(module: nn.Module) -> torch.device:
    """Where the module computes, which is not where offloaded shards are."""
    parameter = next(module.parameters())
    if not isinstance(parameter, DTensor) or parameter.device_mesh.device_type == "cpu":
        return parameter.device
    kind = parameter.device_mesh.device_type
    return torch.device(kind, torch.get_device_module(kind).current_device())


@contextmanager
def gathered_weights(module: nn.Module) -> Iterator[None]:
    """Keep all weights of a sharded module on every rank; forward passes then need no other rank.

    Every rank must enter. For forward passes without gradient only; it takes the memory of the
    whole model in the dtype of compute. A module that is not sharded is left alone.
    """
    groups = [part for part in module.modules() if isinstance(part, FSDPModule)]
    try:
        for group in groups:
            group.set_reshard_after_forward(False, recurse=False)
            group.unshard()
        yield
    finally:
        for group in groups:
            group.set_reshard_after_forward(True, recurse=False)
            group.reshard()
