"""What a sampler's engine has to be told so that it serves the policy's present weights.

RL moves few weights far enough to show in the engine's dtype (PULSE, arXiv:2602.03839; Helix,
arXiv:2605.07330), so an update names the changed places and their new values. Values are absolute:
the engine holds the very bits that a dense transfer would give it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlsgd.functional.patches import (
    EncodedPatch,
    apply_patch_,
    count_changed,
    decode_patch,
    encode_patch,
    make_patch,
)

POSITIONS, VALUES = "/positions", "/values"  # no parameter has a slash in its name


@dataclass
class WeightUpdate:
    """Tensors that changed, each whole or as a patch, in the engine's dtype, where they were.

    Valid until the next update: whole tensors are those that it will be compared with.

    Args:
        dtype: dtype of all of them.
        tensors: those sent whole.
        patches: those sent as changed places.
        shapes: shapes of the patched ones.
        num_weights: number of the model's weights.
        num_changed: weights that differ from the last update; all of them in the first.
        dense_bytes: bytes that sending every tensor whole would take.
    """

    dtype: torch.dtype
    tensors: dict[str, Tensor] = field(default_factory=dict)
    patches: dict[str, EncodedPatch] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    num_weights: int = 0
    num_changed: int = 0
    dense_bytes: int = 0

    @property
    def is_empty(self) -> bool:
        return not self.tensors and not self.patches

    @property
    def is_whole(self) -> bool:
        """Whether it holds every weight, so that nothing older is needed."""
        return sum(tensor.nbytes for tensor in self.tensors.values()) == self.dense_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of values and positions; names and shapes come on top."""
        whole = sum(tensor.nbytes for tensor in self.tensors.values())
        return whole + sum(patch.nbytes for patch in self.patches.values())

    def metrics(self) -> dict[str, float]:
        """Size of the update beside a dense one, for logging."""
        return {
            "sync/bytes": float(self.nbytes),
            "sync/dense_bytes": float(self.dense_bytes),
            "sync/changed_share": self.num_changed / max(1, self.num_weights),
        }


class WeightSync:
    """Compares the policy with what was sent last.

    Costs one copy of the model beside it, on its device and in the dtype of the engine (2 GB for
    1 B weights in bfloat16), unless `sparse` is off. To compare on the CPU would copy every weight
    there for each rollout, which takes longer than the rest of the transfer.

    Args:
        dtype: dtype that the engine holds the weights in.
        sparse: send changes alone; otherwise nothing is kept and every update is the whole model.
    """

    def __init__(self, dtype: torch.dtype, *, sparse: bool = True) -> None:
        self.dtype = dtype
        self.sparse = sparse
        self.sent: dict[str, Tensor] = {}

    def forget(self) -> None:
        """The engine may hold anything: the next update is the whole model."""
        self.sent = {}

    @torch.no_grad()
    def update(self, parameters: Iterable[tuple[str, Tensor]]) -> WeightUpdate:
        """What the engine needs, taken as sent from now on; call `forget` if sending fails.

        Args:
            parameters: name and whole tensor of every weight, on any device.
        """
        result = WeightUpdate(self.dtype)
        for name, parameter in parameters:
            weight = parameter.detach().to(self.dtype).contiguous()
            result.num_weights += weight.numel()
            result.dense_bytes += weight.nbytes
            if name not in self.sent:
                self._send_whole(name, weight, result)
                result.num_changed += weight.numel()
                continue
            changed = count_changed(weight, self.sent[name])
            result.num_changed += changed
            if changed == 0:
                continue
            # A patch of up to half is always smaller; a larger one saves little and takes long.
            if 2 * changed > weight.numel():
                self._send_whole(name, weight, result)
            else:
                patch = make_patch(weight, self.sent[name])
                result.patches[name] = encode_patch(patch, weight.numel())
                result.shapes[name] = list(weight.shape)
            self.sent[name].copy_(weight)
        return result

    def _send_whole(self, name: str, weight: Tensor, update: WeightUpdate) -> None:
        if self.sparse and name not in self.sent:
            self.sent[name] = weight.clone()  # the policy's own memory, where no cast was needed
        update.tensors[name] = self.sent.get(name, weight)


def write_update(update: WeightUpdate, path: Path) -> None:
    """Write an update as one safetensors file."""
    tensors = {name: tensor.cpu() for name, tensor in update.tensors.items()}
    for name, patch in update.patches.items():
        tensors[name + POSITIONS] = patch.positions.cpu()
        tensors[name + VALUES] = patch.values.cpu()
    patched = {
        name: {"encoding": patch.encoding, "shape": update.shapes[name]}
        for name, patch in update.patches.items()
    }
    dtype = str(update.dtype).removeprefix("torch.")
    save_file(tensors, path, metadata={"dtype": dtype, "patched": json.dumps(patched)})


@contextmanager
def update_file(update: WeightUpdate, folder: str | None = None) -> Iterator[Path]:
    """An update's file while an engine reads it, in `folder` or where temporary files are."""
    with tempfile.TemporaryDirectory(prefix="rlsgd-sync-", dir=folder) as temporary:
        path = Path(temporary) / "update.safetensors"
        write_update(update, path)
        yield path


def read_update(path: Path) -> WeightUpdate:
    """Read what `write_update` wrote; the counts are not in the file."""
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata() or {}
        update = WeightUpdate(getattr(torch, header["dtype"]))
        patched = json.loads(header["patched"])
        for name, about in patched.items():
            update.patches[name] = EncodedPatch(
                about["encoding"],
                file.get_tensor(name + POSITIONS),
                file.get_tensor(name + VALUES),
            )
            update.shapes[name] = about["shape"]
        for name in file.keys():  # noqa: SIM118  (the file itself is not iterable)
            if not name.endswith((POSITIONS, VALUES)):
                update.tensors[name] = file.get_tensor(name)
    return update


def apply_update_(weights: dict[str, Tensor], update: WeightUpdate) -> None:
    """Bring a copy of the weights up to date, in place.

    Raises:
        KeyError: a patch is for a tensor that `weights` does not have.
    """
    for name, tensor in update.tensors.items():
        weights[name] = tensor.clone()
    for name, encoded in update.patches.items():
        weight = weights[name]
        apply_patch_(weight, decode_patch(encoded, weight.numel(), weight.dtype))
