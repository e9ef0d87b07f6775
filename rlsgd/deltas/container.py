"""Safetensors files that are written piece by piece, and deltas that prove themselves undamaged.

The `safetensors` package writes from a dict of tensors in memory. Here only names, dtypes and
shapes are known in advance, and the bytes follow one tensor at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rlsgd.core.stored import Spec, Stored

# The checksum is the header's first value, so that it stands at a known place and everything else,
# the header included, is under it.
_OPENING = b'{"__metadata__":{"checksum":"'
_START = 8 + len(_OPENING)
_DIGITS = 64
_CHUNK = 1 << 20


def write_safetensors(
    path: Path, specs: Mapping[str, Spec], tensors: Iterable[tuple[str, Stored]]
) -> None:
    """Write tensors as they come, which must be in `storage_order(specs)`."""
    with path.open("wb") as file:
        file.write(_header({name: specs[name] for name in storage_order(specs)}, {"format": "pt"}))
        for (name, tensor), expected in zip(tensors, storage_order(specs), strict=True):
            assert (name, tensor.spec) == (expected, specs[expected])
            file.write(tensor.buffer)
        _sync(file)


def storage_order(specs: Mapping[str, Spec]) -> list[str]:
    """Names with the widest dtypes first, so that every tensor lies aligned in the file."""
    return sorted(specs, key=lambda name: (-specs[name].itemsize, name))


def write_checked(
    path: Path, blobs: Mapping[str, int], payload: BinaryIO, metadata: Mapping[str, str]
) -> int:
    """A safetensors file of byte strings under a checksum; appears whole or not at all.

    Args:
        path: replaced if it exists.
        blobs: name -> length, in the order of `payload`.
        payload: their bytes, one after another.
        metadata: kept in the header.

    Returns:
        Bytes of the file.
    """
    specs = {name: Spec("U8", (length,)) for name, length in blobs.items()}
    header = _header(specs, {"checksum": "0" * _DIGITS, **metadata})
    assert header[8:].startswith(_OPENING)
    checksum = hashlib.sha256(header)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(header)
            payload.seek(0)
            while chunk := payload.read(_CHUNK):
                checksum.update(chunk)
                file.write(chunk)
            size = file.tell()
            file.seek(_START)
            file.write(checksum.hexdigest().encode())
            _sync(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return size


class CheckedFile:
    """A file of `write_checked`, of which every byte was compared with the checksum on opening.

    Raises:
        ValueError: it is not such a file, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        checksum = hashlib.sha256()
        with path.open("rb") as file:
            opening = file.read(_START)
            stored = file.read(_DIGITS)
            if opening[8:] != _OPENING or len(stored) < _DIGITS:
                raise ValueError(f"{path} is not a delta, or its first bytes are damaged")
            checksum.update(opening + b"0" * _DIGITS)
            while chunk := file.read(_CHUNK):
                checksum.update(chunk)
            if checksum.hexdigest().encode() != stored:
                raise ValueError(
                    f"{path} is damaged or cut short: its checksum does not match; get it again"
                )
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
        self.metadata: dict[str, str] = header.pop("__metadata__")
        self._start = 8 + length
        self._offsets = {name: entry["data_offsets"] for name, entry in header.items()}

    def size(self, name: str) -> int:
        """Bytes of one blob; 0 if there is none of that name."""
        start, end = self._offsets.get(name, (0, 0))
        return end - start

    def read(self, name: str) -> bytes:
        """The bytes of one blob."""
        start, end = self._offsets[name]
        with self.path.open("rb") as file:
            file.seek(self._start + start)
            return file.read(end - start)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.nbytes
        header[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
