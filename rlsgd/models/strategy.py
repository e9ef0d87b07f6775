"""FSDP2Strategy: Lightning's ModelParallelStrategy with all processes sharing every model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from rlsgd.core.distributed import local_shard, whole
from rlsgd.models.shard_index import META, UnsafeIndexError, read_index
from rlsgd.models.sharding import Sharding, is_sharded, shard_like


class FSDP2Strategy(ModelParallelStrategy):
    """Shards policy, reference and critic over all processes (FSDP2).

    Optimizer states are saved and restored through `state_dict` and `load_state_dict` alone, which
    every optimizer has. Lightning's own way fails for plain SGD, which has no state, and makes a
    step with gradient 0 first.

    Args:
        save_distributed_checkpoint: every rank writes its shards into a folder. Otherwise the first
            rank gathers everything in host memory and writes one file, which runs of one process
            and of any number of ranks can resume from.
        cpu_offload: keep shards, gradients and optimizer states in host memory, and let the
            optimizer step there.
        process_group_backend: none means gloo on CPU, nccl on GPU, and both with `cpu_offload`.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        cpu_offload: bool = False,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=default_pg_timeout,
        )
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def _get_process_group_backend(self) -> str:
        if self._process_group_backend is None and self.cpu_offload and self.computes_on_gpu:
            return "cpu:gloo,cuda:nccl"
        return super()._get_process_group_backend()

    def model_to_device(self) -> None:
        """Move what was not made on its device; offloaded shards stay in host memory."""
        assert self.lightning_module is not None
        for part in self.lightning_module.children():
            if not (self.cpu_offload and is_sharded(part)):
                part.to(self.root_device)

    @property
    def computes_on_gpu(self) -> bool:
        return self.root_device.type != "cpu"

    def sharding(self) -> Sharding:
        """How models are sharded under the trainer's precision; on CPU always in their own dtype.

        Under bf16-mixed the weights are gathered in bfloat16, so that norms and the residual stream
        are bfloat16 too, which autocast alone leaves in float32.
        """
        mesh: DeviceMesh = self.device_mesh["data_parallel"]
        mixed = self.computes_on_gpu and self.precision_plugin.precision == "bf16-mixed"
        return Sharding(
            mesh=mesh,
            device=self.root_device,
            compute_dtype=torch.bfloat16 if mixed else None,
            cpu_offload=self.cpu_offload,
        )

    # ---- checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.stored(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        inner: Any = (
            optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        )
        return self.stored(inner.state_dict())

    def stored(self, state: dict[str, Any]) -> dict[str, Any]:
        """Shards as they are for a distributed checkpoint; else whole tensors on the first rank."""
        if self._save_distributed_checkpoint:
            return state

        def gather(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            full = whole(value)
            return full.cpu() if self.is_global_zero else None

        return tree_map(gather, dict(state))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        if not self._save_distributed_checkpoint:
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        path = Path(self.broadcast(filepath))
        if path.is_file():
            path.unlink()
        path.mkdir(parents=True, exist_ok=True)
        optimizers = checkpoint.get("optimizer_states", [])
        dcp.save(by_name(checkpoint.pop("state_dict"), optimizers), checkpoint_id=path)
        if self.is_global_zero:  # of the tensors, which are in the shards, only their shapes
            checkpoint["optimizer_states"] = tree_map(_shape_of, optimizers)
            torch.save(checkpoint, path / META)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Restore model and optimizers from either kind of checkpoint, of any number of ranks.

        Returns:
            what else the checkpoint holds, for Lightning.

        Raises:
            ValueError: it is not a checkpoint of this model and these optimizers.
        """
        path = Path(self.broadcast(checkpoint_path))
        flag = f"--ckpt_path {path}"
        if not (path.is_file() or (path / META).is_file()):
            raise ValueError(f"{flag}: neither a checkpoint file nor a folder with {META}")
        if path.is_dir():
            try:
                read_index(path)
            except UnsafeIndexError as error:
                raise ValueError(f"{flag} holds more than tensors: {error}") from error
        assert self.lightning_module is not None
        model = self.lightning_module.state_dict()  # shares storage with the module
        in_shards = path.is_dir()
        file = path / META if in_shards else path
        checkpoint = torch.load(
            file, mmap=not in_shards, map_location="cpu", weights_only=weights_only
        )
        states = checkpoint.get("optimizer_states", [])
        if self.optimizers and len(states) != len(self.optimizers):
            raise ValueError(
                f"{flag} holds {len(states)} optimizers and this run has {len(self.optimizers)}: "
                "it was written by another run, or with save_weights_only"
            )
        placed = [
            placed_states(state, optimizer, self.root_device)
            for state, optimizer in zip(states, self.optimizers, strict=False)
        ]
        if in_shards:
            dcp.load(by_name(model, placed), checkpoint_id=path)
        else:
            copy_into(model, checkpoint.pop("state_dict"), flag)
        for optimizer, state in zip(self.optimizers, placed, strict=False):
            optimizer.load_state_dict(state)
        return checkpoint


def by_name(model: dict[str, Any], optimizers: list[dict[str, Any]]) -> dict[str, Any]:
    """The tensors of a model and of the state dicts of its optimizers, each under a name."""
    tensors = {f"model.{name}": value for name, value in model.items()}
    for number, state in enumerate(optimizers):
        tensors |= {
            f"optimizer.{number}.{leaf}": value
            for leaf, value in enumerate(tree_leaves(state))
            if isinstance(value, Tensor)
        }
    return tensors


def copy_into(model: dict[str, Any], whole_tensors: dict[str, Tensor], flag: str) -> None:
    """Copy whole tensors into a module's state dict, each rank its shards."""
    for name, value in model.items():
        if name not in whole_tensors or whole_tensors[name].shape != value.shape:
            raise ValueError(f"{flag} has no {name} of shape {tuple(value.shape)}")
        new = whole_tensors[name]
        part = shard_like(value, new) if isinstance(value, DTensor) else new
        local_shard(value).copy_(local_shard(part))


def placed_states(
    state: dict[str, Any], optimizer: Optimizer, device: torch.device
) -> dict[str, Any]:
    """An optimizer's state dict of whole tensors, or of shapes alone, as this rank has to hold it.

    What is shaped like its parameter is sharded like it; numbers stay as they are, and every rank
    holds all of anything else.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def place(value: Any, parameter: Tensor) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_meta:
            value = torch.empty_like(value, device="cpu")
        if value.ndim == 0 or not isinstance(parameter, DTensor):
            return value
        if value.shape == parameter.shape:
            return shard_like(parameter, value.to(device))
        mesh = parameter.device_mesh
        everywhere = [Replicate()] * mesh.ndim
        return distribute_tensor(value.to(device), mesh, everywhere, src_data_rank=None)

    states = {
        number: tree_map(partial(place, parameter=parameters[number]), entries)
        for number, entries in state["state"].items()
    }
    return {**state, "state": states}


def _shape_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return value


def sharding_of(strategy: object) -> Sharding:
    """How a strategy with a device mesh shards models.

    Raises:
        ValueError: it is Lightning's own, whose checkpoints plain SGD cannot resume from.
    """
    if not isinstance(strategy, FSDP2Strategy):
        raise ValueError(
            f"--trainer.strategy {type(strategy).__name__}: use "
            "rlsgd.models.strategy.FSDP2Strategy, which is the same with "
            "checkpoints that plain SGD can resume from; see --config trainer/fsdp"
        )
    return strategy.sharding()
