"""Checkpoints of Lightning as `rlsgd analyze` reads them."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from rlsgd.core.stored import Spec, Stored, StoredTensors, spec_of

POLICY = "policy."


class LightningTensors(StoredTensors):
    """The policy's tensors in a checkpoint that Lightning wrote, read one at a time.

    The file is mapped for each tensor and unmapped again, as `StoredTensors` does. Nothing but
    tensors and plain containers is unpickled.

    Args:
        path: the `.ckpt` file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        weights = self._load()
        super().__init__(dict.fromkeys(weights, path))
        self.specs = {name: spec_of(tensor) for name, tensor in weights.items()}

    def _load(self) -> dict[str, Tensor]:
        content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        weights = content["state_dict"]
        return {n.removeprefix(POLICY): t for n, t in weights.items() if n.startswith(POLICY)}

    def spec(self, name: str) -> Spec:
        return self.specs[name]

    def stored(self, name: str) -> Stored:
        return Stored.of(self._load()[name])


def open_lightning(path: Path, flag: str, export: str) -> LightningTensors:
    try:
        tensors = LightningTensors(path)
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{flag}: could not be read ({reason}); {export}") from error
    if not tensors.files:
        raise ValueError(f"{flag}: holds no tensors of a policy ({POLICY}...); {export}")
    return tensors
