# pyright: reportMissingImports=false
"""Weights from GPU to vLLM without files, through vLLM's own transfer engines.

Written against vLLM 0.32 and checked against its types on a CPU; it has never run on GPUs.
"""

from __future__ import annotations

import json
import math
import socket
import urllib.request
from typing import Any

import torch

from rlsgd.functional.patches import decode_patch
from rlsgd.rollout.vllm.weight_sync import WeightUpdate

IPC_BUFFER = 2**28  # bytes sent at a time


class NCCLTransfer:
    """The trainer's end: rank 0 of an NCCL group whose other ranks are the server's workers.

    Args:
        address: address of the server.
        backend: `nccl`, which takes whole models, or `sparse_nccl`, which takes patches.
    """

    def __init__(self, address: str, backend: str) -> None:
        self.address = address
        self.backend = backend
        self.engine: Any = None

    def send(self, update: WeightUpdate) -> None:
        """Send an update; under `nccl` it must be whole."""
        if self.backend == "nccl":
            assert update.is_whole, "vLLM's dense transfer replaces every weight"
            self._started(source=_source(update)).send_weights()
        else:
            self._started(source=None).send_weights(sparse_patches(update, device="cuda"))

    def _started(self, source: Any) -> Any:
        if self.engine is None:
            from vllm.distributed.weight_transfer import (
                HTTPVLLMWeightSyncClient,
                WeightTransferTrainerFactory,
            )
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
            from vllm.distributed.weight_transfer.sparse_nccl_engine import (
                SparseNCCLTrainerInitInfo,
            )
            from vllm.utils.network_utils import get_ip

            group: dict[str, Any] = {
                "master_address": get_ip(),
                "master_port": _free_port(),
                "world_size": 1 + self._server_workers(),
            }
            info = NCCLTrainerInitInfo if self.backend == "nccl" else SparseNCCLTrainerInitInfo
            self.engine = WeightTransferTrainerFactory.trainer_init(
                info(**group, rank=0),
                client=HTTPVLLMWeightSyncClient(self.address),
                source=source,
            )
        self.engine.source = source
        return self.engine

    def _server_workers(self) -> int:
        with urllib.request.urlopen(f"{self.address}/get_world_size", timeout=60) as response:
            return int(json.load(response)["world_size"])


class IPCTransfer:
    """Whole models to an engine on the trainer's GPU, which reads them from the trainer's memory.

    Args:
        llm: the engine, a `vllm.LLM` started with the `ipc` backend.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.engine: Any = None

    def send(self, update: WeightUpdate) -> None:
        """Send a whole update, in chunks, so that the model is not twice in the GPU's memory."""
        source = _source(update)
        if self.engine is None:
            from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            largest = max(tensor.nbytes for tensor in update.tensors.values())
            info = IPCTrainerInitInfo(
                packed=True,
                packed_buffer_size_bytes=max(largest, IPC_BUFFER),
                rank=0,  # each rank has an engine of its own, so it is the first one for it
            )
            self.engine = WeightTransferTrainerFactory.trainer_init(
                info, client=LLMClient(self.llm), source=source
            )
        self.engine.source = source
        self.engine.send_weights()


class LLMClient:
    """vLLM's control of a transfer (`VLLMWeightSyncClient`) for an engine in our hands."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.llm.init_weight_transfer_engine({"init_info": init_info})

    def shutdown_weight_transfer_engine(self) -> None:
        self.llm.shutdown_weight_transfer_engine()

    def start_weight_update(self) -> None:
        self.llm.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self.llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.llm.finish_weight_update(weight_version)


def sparse_patches(update: WeightUpdate, device: str) -> list[Any]:
    """An update as vLLM's patches; a whole tensor becomes a patch of all its places.

    Raises:
        ValueError: a tensor has more places than vLLM's 32-bit positions reach.
    """
    from vllm.distributed.weight_transfer.sparse_nccl_engine import SparseWeightPatch

    def patch(name: str, places: torch.Tensor, values: torch.Tensor, shape: Any) -> Any:
        if math.prod(shape) > torch.iinfo(torch.int32).max:
            raise ValueError(
                f"--model.sampler.init_args.transfer sparse_nccl: {name} has more than 2^31 "
                "weights; use nccl"
            )
        return SparseWeightPatch(
            name, places.to(device, torch.int32), values.to(device), tuple(shape)
        )

    patches = [
        patch(name, _all_places(tensor), tensor.flatten(), tensor.shape)
        for name, tensor in update.tensors.items()
    ]
    for name, encoded in update.patches.items():
        shape = update.shapes[name]
        decoded = decode_patch(encoded, math.prod(shape), update.dtype)
        patches.append(patch(name, decoded.positions, decoded.values, shape))
    return patches


def _all_places(tensor: torch.Tensor) -> torch.Tensor:
    return torch.arange(tensor.numel(), dtype=torch.int32, device=tensor.device)


def _source(update: WeightUpdate) -> Any:
    """A whole update as what vLLM's dense engine reads its tensors from."""
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    class UpdateSource(WeightSource):
        def metadata(self) -> list[Any]:
            return [ParamMeta(n, t.dtype, tuple(t.shape)) for n, t in update.tensors.items()]

        def __iter__(self) -> Any:
            return ((name, tensor.cuda()) for name, tensor in update.tensors.items())

    return UpdateSource()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]
