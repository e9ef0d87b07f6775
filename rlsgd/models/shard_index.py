"""Checkpoints in shards: what torch would unpickle of one is checked before torch does."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from rlsgd.core.named_files import named_file

INDEX = ".metadata"  # which tensors there are, and where; torch reads it with pickle
META = "meta.pt"  # the rest of the checkpoint; Lightning takes a folder with it for one
# what an index is made of: descriptions of tensors, and nothing that acts when it is built
_DESCRIPTIONS = "torch.distributed.checkpoint.metadata"
KNOWN = {
    *(
        (_DESCRIPTIONS, name)
        for name in (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


class UnsafeIndexError(pickle.UnpicklingError):
    """Loading this index as torch does could run code, or read other files."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in KNOWN:
            raise UnsafeIndexError(f"{INDEX} asks for {module}.{name}")
        return super().find_class(module, name)


def read_index(folder: Path) -> Metadata:
    """The index of a folder of shards.

    Raises:
        UnsafeIndexError: it holds more than tensors, or points outside the folder.
        ValueError: it is damaged.
    """
    with (folder / INDEX).open("rb") as file:
        try:
            index = _Unpickler(file).load()
        except UnsafeIndexError:
            raise
        except Exception as error:  # a pickle can fail in any way
            raise ValueError(f"{INDEX} cannot be read: {error}") from error
    if not isinstance(index, Metadata):
        raise ValueError(f"{INDEX} is no index of shards")
    for name, entry in index.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):  # torch would unpickle it
            raise UnsafeIndexError(f"{INDEX} has {name}, which is no tensor")
    for place in index.storage_data.values():
        try:
            named_file(folder, place.relative_path)
        except ValueError as error:
            raise UnsafeIndexError(f"{INDEX} points outside its folder: {error}") from error
    return index


def check_shards(folder: Path) -> None:
    """Read all that the index points at, and compare it with its checksums.

    Raises:
        UnsafeIndexError: see `read_index`.
        ValueError: a shard is damaged.
        OSError: a shard is not there.
    """
    places = read_index(folder).storage_data.values()
    for place in sorted(places, key=lambda place: (place.relative_path, place.offset)):
        with (folder / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            stored = file.read(place.length)
        try:
            with zipfile.ZipFile(io.BytesIO(stored)) as archive:
                broken = archive.testzip()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{place.relative_path} at byte {place.offset}: {error}") from error
        if broken:
            raise ValueError(f"{place.relative_path} at byte {place.offset}: wrong checksum")
