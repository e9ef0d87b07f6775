"""The few collective operations that rlsgd needs; without a process group they are the identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def process_number() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def global_sum(value: Tensor) -> Tensor:
    """Sum over all ranks."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


def global_max(value: Tensor) -> Tensor:
    """Largest over all ranks."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def gathered(values: list[Any]) -> list[Any]:
    """The lists of all ranks as one, in the order of ranks, on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    lists: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, values)
    return [value for part in lists for value in part]


def global_norm(gradients: list[Tensor], norm_type: float = 2.0) -> Tensor:
    """Norm [] of all gradients together, over every rank's shards."""
    norm = torch.nn.utils.get_total_norm(gradients, norm_type)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from (run seed, purpose, epoch, rank ...), another one if any part differs."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@torch.no_grad()
def full_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once (tied weights under their first name), whole, one at a time.

    A sharded parameter is gathered when its turn comes, so every rank must walk the iterator.
    """
    for name, parameter in module.named_parameters(remove_duplicate=True):
        yield name, whole(parameter)


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """A tensor's values without gradient; a sharded one is gathered, so every rank must call."""
    value = tensor.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its storage; all of a tensor that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
