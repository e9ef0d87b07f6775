"""The policy after each epoch as a delta: every one can be kept, for megabytes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlsgd.callbacks.base import UpdateCallback, log_metrics, run_folder
from rlsgd.callbacks.scratch import Scratch
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.core.distributed import full_parameters
from rlsgd.core.stored import INDEX
from rlsgd.deltas.manifest import content_hash, tensor_digest
from rlsgd.deltas.pack import DeltaWriter, small_files, with_dtype
from rlsgd.deltas.reader import Delta

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class DeltaCheckpoint(UpdateCallback):
    """Writes `deltas/delta-epoch=N.safetensors` in the run's folder: what changed since the start.

    `rlsgd delta apply BASE DELTA OUT` gives back the policy bit for bit as a model folder, BASE
    being the model that training started from, or `starting_weights` in the run's folder where the
    run wrote that (random initialisation, renamed tensors). No optimizer state is kept: training
    resumes from Lightning's checkpoints. Logged are `delta/bytes`, `delta/changed_share` (of all
    weights, by their bits) and `delta/seconds`.

    Args:
        every_n_epochs: cadence; the last epoch is always written.
        dtype: write the view of the policy in `bfloat16` or `float16` instead, in which far fewer
            weights change; folder and metrics then have its name: `deltas_bfloat16/`,
            `delta_bfloat16/bytes`.
        chain: each delta starts from the policy of the one before it: smaller, but all must be
            applied in order. A resumed run goes on with its chain where the last delta is of the
            iteration that it resumes from, and otherwise begins a new one at the start. The policy
            of the last delta lies on disk meanwhile.
    """

    def __init__(
        self, every_n_epochs: int = 1, dtype: str | None = None, chain: bool = False
    ) -> None:
        super().__init__(every_n_epochs)
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(
                f"--trainer.callbacks: DeltaCheckpoint has dtype {dtype!r}; choose from "
                f"{', '.join(DTYPES)}, or leave it out for the policy's own"
            )
        self.dtype = DTYPES.get(dtype or "")
        self.chain = chain
        self.suffix = f"_{dtype}" if dtype else ""
        self.scratch = Scratch()
        self.base: LazyTensors
        self.base_digests: dict[str, str] = {}
        self.base_files: dict[str, bytes] = {}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(dtype=str(self.dtype), chain=self.chain)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.base = self.initial
        if trainer.is_global_zero:
            folder = next(iter(self.base.files.values())).parent
            if folder == self.snapshot:
                _complete(folder, self.base, pl_module)
            self.base_files = small_files(folder)
            self.base_digests = {name: tensor_digest(self.base[name]) for name in self.base.files}
        if self.chain and trainer.ckpt_path is not None:
            self.follow(trainer, pl_module)

    def follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the last delta of a resumed run, if that gives the policy as it is now."""
        digests = {name: tensor_digest(weight) for name, weight in self.result(pl_module)}
        last = self.folder(trainer) / f"delta-epoch={trainer.current_epoch - 1}.safetensors"
        follows = (
            trainer.is_global_zero
            and last.exists()
            and Delta(last).manifest.result == content_hash(digests)
        )
        if trainer.strategy.broadcast(follows):
            self.keep(trainer, pl_module)
            self.base_digests = digests
            self.base_files = self.result_files(pl_module)

    def folder(self, trainer: Trainer) -> Path:
        """Where the deltas are; every rank must call it, see `run_folder`."""
        return run_folder(trainer) / f"deltas{self.suffix}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer):
            return
        started = time.perf_counter()
        path = self.folder(trainer) / f"delta-epoch={trainer.current_epoch}.safetensors"
        if trainer.is_global_zero:
            self.write(path, trainer, pl_module, started)
        else:
            for _ in self.result(pl_module):  # a sharded weight is gathered by all ranks
                pass
        if self.chain:
            self.keep(trainer, pl_module)

    def keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the policy on disk, on the first rank, as the base of the next delta."""
        kept = (pair for pair in self.result(pl_module) if trainer.is_global_zero)
        self.base = self.scratch.write(trainer, kept)

    def result_files(self, pl_module: LightningModule) -> dict[str, bytes]:
        """The small files that belong to the policy in the dtype of the deltas."""
        module: Any = pl_module
        dtype = self.dtype or module.policy.dtype
        return with_dtype(self.base_files, str(dtype).removeprefix("torch."))

    def write(
        self, path: Path, trainer: Trainer, pl_module: LightningModule, started: float
    ) -> None:
        """Write one delta and log what it cost; on the first rank."""
        with DeltaWriter(path, self.base_digests) as writer:
            for name, weight in self.result(pl_module):
                before = self.base[name] if name in self.base else None  # noqa: SIM401  (no dict)
                writer.add(name, weight, before)
            for name in sorted(self.base.files.keys() - writer.manifest.tensors.keys()):
                writer.remove(name, self.base[name])
            files = self.result_files(pl_module)
            writer.add_files(files, self.base_files)
            size = writer.close()
        entries = writer.manifest.tensors
        if self.chain:
            self.base_files = files
            self.base_digests = {name: entry.digest for name, entry in entries.items()}
        weights = sum(entry.spec.numel for entry in entries.values())
        prefix = f"delta{self.suffix}"
        metrics = {
            f"{prefix}/bytes": size,
            f"{prefix}/changed_share": sum(e.changed for e in entries.values()) / weights,
            f"{prefix}/seconds": time.perf_counter() - started,
        }
        log_metrics(trainer, metrics)

    def result(self, pl_module: LightningModule) -> Iterator[tuple[str, Tensor]]:
        """What an export of the policy would hold, on the CPU, one tensor at a time."""
        policy = self.measured(pl_module)
        for name, weight in full_parameters(policy):
            yield name, _cast(weight.cpu(), self.dtype)
        persistent = policy.state_dict().keys()
        for name, buffer in policy.named_buffers():
            if name in persistent:
                yield name, _cast(buffer.cpu(), self.dtype)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.scratch.remove()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.scratch.remove()


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A floating tensor rounded to `dtype`; any other, or without a dtype, as it is."""
    wide = tensor.is_floating_point() and tensor.element_size() > 1
    return tensor.to(dtype) if dtype is not None and wide else tensor


def _complete(folder: Path, tensors: LazyTensors, pl_module: LightningModule) -> None:
    """Make the folder of the starting weights one that transformers loads."""
    module: Any = pl_module
    module.policy.config.save_pretrained(folder)
    module.policy.generation_config.save_pretrained(folder)
    module.tokenizer.save_pretrained(folder)
    shards = {name: path.name for name, path in tensors.files.items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
