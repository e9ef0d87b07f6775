"""Files that another file names: an index of shards, a delta, a manifest. None leads elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

ADAPTER, TOKENIZER = "adapter_config.json", "tokenizer_config.json"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def named_file(folder: Path, name: object) -> Path:
    """The file of this name in the folder, whether it exists or not.

    A name is a plain path below the folder. No part of it may be a link, except where Hugging
    Face's cache keeps a snapshot: links to the blobs of the same model.

    Raises:
        ValueError: the name is absolute, climbs with `..`, is empty, or is that of a link.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{folder} names {name!r:.80}, which is no file name")
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    if any(path.is_absolute() or path.drive or ".." in path.parts for path in kinds):
        raise ValueError(f"{folder} names {name!r:.80}, which leads out of its folder")
    path = folder
    for part in kinds[0].parts:
        path = path / part
        if path.is_symlink() and not _is_blob(folder, path):
            raise ValueError(f"{folder} names {name!r:.80}, and {path} is a link; copy the file")
    if path == folder or (path.exists() and not path.is_file()):
        raise ValueError(f"{folder} names {name!r:.80}, which is no file")
    return path


def check_model_folder(folder: Path) -> None:
    """Check the files that a model folder's own files name, before a library opens it.

    Raises:
        ValueError: an index or a tokenizer's settings cannot be read or name what `named_file`
            refuses, or the folder is an adapter, which names another model.
    """
    for index in INDEXES:
        if (folder / index).is_file():
            read_weight_map(folder / index)
    if (folder / ADAPTER).is_file():
        raise ValueError(f"{folder} has {ADAPTER}, which names another model; merge it first")
    if (folder / TOKENIZER).is_file():
        for name in _tokenizer_files(folder / TOKENIZER):
            if os.path.exists(name):  # else nothing is opened: the path of another machine
                named_file(folder, name)


def _tokenizer_files(settings: Path) -> list[str]:
    """The files that a tokenizer's settings name: `vocab_file`, `merges_file` and the like."""
    try:
        items = dict(json.loads(settings.read_text())).items()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{settings} cannot be read: {error!r}") from error
    names = [value for key, value in items if key.endswith("_file") or key in ("vocab", "merges")]
    return [name for name in names if isinstance(name, str) and "\0" not in name]


def read_weight_map(index: Path) -> dict[str, Path]:
    """Tensor name -> the file that an index of shards names for it.

    Raises:
        ValueError: the index cannot be read, or names what `named_file` refuses.
    """
    try:
        shards = json.loads(index.read_text())["weight_map"]
        items = dict(shards).items()
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{index} is no index of shards: {error!r}") from error
    return {name: named_file(index.parent, shard) for name, shard in items}


def _is_blob(folder: Path, link: Path) -> bool:
    """Whether a link leads from `models--X/snapshots/REVISION` to `models--X/blobs`."""
    snapshot = folder.resolve()
    blobs = snapshot.parents[1] / "blobs" if len(snapshot.parents) > 1 else None
    return snapshot.parent.name == "snapshots" and link.resolve().parent == blobs
