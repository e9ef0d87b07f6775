"""Tensors as they lie in safetensors files: dtype, shape and bytes, read without torch.

Packing a delta and counting unchanged weights compare bytes, and importing torch would take longer
than either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from rlsgd.core.named_files import read_weight_map

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# safetensors' name -> torch's name, bytes of an entry
DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}
_NAMES = {f"torch.{name}": stored for stored, (name, _) in DTYPES.items()}


@dataclass(frozen=True)
class Spec:
    """What a safetensors header says of one tensor.

    Args:
        dtype: its name in safetensors.
        shape: of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype][1]

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize


def spec_of(tensor: Tensor) -> Spec:
    """Dtype and shape of a tensor.

    Raises:
        ValueError: safetensors has no such dtype.
    """
    if str(tensor.dtype) not in _NAMES:
        raise ValueError(f"a tensor of {tensor.dtype} cannot be stored")
    return Spec(_NAMES[str(tensor.dtype)], tuple(tensor.shape))


@dataclass(frozen=True)
class Stored:
    """A tensor as its file has it.

    Args:
        spec: dtype and shape.
        data: [spec.nbytes] uint8.
    """

    spec: Spec
    data: np.ndarray

    @classmethod
    def of(cls, tensor: Tensor | Stored) -> Stored:
        """The bytes of a tensor, without a copy where they lie on the CPU in order."""
        if isinstance(tensor, Stored):
            return tensor
        spec, flat = spec_of(tensor), tensor.detach().cpu().contiguous().reshape(-1)
        if not spec.nbytes:
            return cls(spec, np.empty(0, np.uint8))
        import torch

        return cls(spec, flat.view(torch.uint8).numpy())

    @property
    def buffer(self) -> memoryview:
        """The bytes, for whoever writes or digests them."""
        return self.data.data

    @property
    def words(self) -> np.ndarray:
        """[numel] unsigned integers with the bits of the entries; a view."""
        return self.data.view(f"<u{self.spec.itemsize}")

    def tensor(self) -> Tensor:
        """The same as a tensor, whose memory it is where that may be written to."""
        import torch

        dtype = getattr(torch, DTYPES[self.spec.dtype][0])
        if not self.spec.nbytes:
            return torch.empty(self.spec.shape, dtype=dtype)
        data = self.data if self.data.flags.writeable else self.data.copy()
        return torch.from_numpy(data).view(dtype).reshape(self.spec.shape)

    def rounded(self, dtype: str) -> Stored:
        """The same numbers in another floating dtype, by its name in safetensors."""
        if dtype == self.spec.dtype:
            return self
        import torch

        return Stored.of(self.tensor().to(getattr(torch, DTYPES[dtype][0])))


class StoredTensors:
    """Named tensors in safetensors files, read one at a time.

    A file is opened for each tensor and closed again: pages of a mapping that stays open count as
    resident memory, and would be measured as if they were a second copy of the model.

    Args:
        files: tensor name -> file that holds it.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = dict(files)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A safetensors file, or a model folder or hub name with one or several of them.

        Raises:
            FileNotFoundError: there are no safetensors at `path`.
            ValueError: an index names a file elsewhere.
        """
        if Path(path).is_file():
            return cls(names_in([Path(path)]))
        # In transformers' order, for a folder in which a later save left the other one behind.
        if single := find_file(path, SINGLE):
            return cls(names_in([single]))
        if index := find_file(path, INDEX):
            return cls(read_weight_map(index))
        raise FileNotFoundError(f"{path} holds neither {SINGLE} nor {INDEX}")

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def spec(self, name: str) -> Spec:
        """Dtype and shape of a tensor, from the file's header alone."""
        entry = _header(self.files[name])[1][name]
        return Spec(entry["dtype"], tuple(entry["shape"]))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the file's header alone."""
        return self.spec(name).shape

    def stored(self, name: str) -> Stored:
        """Dtype, shape and bytes of a tensor, in memory of its own.

        Raises:
            OSError: the file ends before the tensor does.
        """
        path, spec = self.files[name], self.spec(name)
        first, entries = _header(path)
        begin, end = entries[name]["data_offsets"]
        with path.open("rb") as file:
            data = np.fromfile(file, np.uint8, count=end - begin, offset=first + begin)
        if len(data) != spec.nbytes:
            raise OSError(f"{path} ends before the last byte of {name}")
        return Stored(spec, data)


def find_file(path: str | Path, filename: str) -> Path | None:
    """A file of a model folder, or of a model on the hub; None where it has none."""
    if Path(path).is_dir():
        return found if (found := Path(path) / filename).is_file() else None
    from transformers.utils.hub import cached_file

    try:
        cached = cached_file(str(path), filename)
    except OSError:  # whatever the reason, the file is not to be had
        return None
    return Path(cached) if cached else None


def names_in(files: Iterable[Path]) -> dict[str, Path]:
    """Tensor name -> file, of all tensors in these files."""
    return {name: path for path in files for name in _header(path)[1]}


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors' bytes begin, and the entry of each."""
    state = path.stat()
    return _read_header(str(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_header(path: str, size: int, changed_ns: int) -> tuple[int, dict[str, Any]]:
    with safe_open(path, framework="np"):  # checks sizes and offsets
        pass
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries: dict[str, Any] = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return 8 + length, entries
