"""Writing a delta, one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rlsgd.core.named_files import named_file
from rlsgd.core.stored import Stored, StoredTensors
from rlsgd.deltas.container import write_checked
from rlsgd.deltas.encoding import STEPS, byte_planes, encode_patch
from rlsgd.deltas.manifest import (
    CASTS,
    COPY,
    FORMAT,
    PATCH,
    SAME,
    WHOLE,
    Entry,
    Manifest,
    content_hash,
    tensor_digest,
    viewed,
)

if TYPE_CHECKING:
    from torch import Tensor

FILE_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".tiktoken"}
CONFIG = "config.json"
_CHUNK = 1 << 24
Progress = Callable[[Iterable[str]], Iterable[str]]


class DeltaWriter:
    """Collects tensors and files in a nameless temporary file; `close` makes the delta of them.

    Args:
        path: of the delta; replaced if it exists, when everything has been written.
        base_digests: of the base's tensors where they are known already, so that the writer need
            not compute them.
    """

    def __init__(self, path: Path, base_digests: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.manifest = Manifest()
        self._base_digests = base_digests or {}
        self._seen: dict[str, str] = {}  # digest -> name
        self._blobs: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._payload = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115  (closed on exit)

    def __enter__(self) -> DeltaWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._payload.close()

    def add(self, name: str, weight: Tensor | Stored, base: Tensor | Stored | None) -> None:
        """Store one tensor of the result.

        Args:
            name: in the result.
            weight: any shape and dtype.
            base: the base's tensor of that name, if it has one.
        """
        now = Stored.of(weight)
        spec, digest = now.spec, tensor_digest(now)
        then = None if base is None else Stored.of(base)
        base_digest = None if then is None else self._digest_of_base(name, then)
        before = None if then is None else viewed(then, spec)
        shared = self._seen.setdefault(digest, name)
        kind, changed, encoding, positions, source = WHOLE, spec.numel, None, 0, None
        patch = None
        if before is not None:
            changed, patch = encode_patch(now.words, before.words)
        if before is not None and not changed:
            kind = SAME
        elif patch is not None:
            kind, encoding, positions = PATCH, patch.encoding, len(patch.positions)
            self._store(f"{name}:positions", patch.positions)
            self._store(f"{name}:values", patch.values)
        elif shared != name:  # a tied weight that the base does not store twice
            kind, source = COPY, shared
        else:
            self._store(f"{name}:whole", byte_planes(now.words))
        self.manifest.tensors[name] = Entry(
            kind,
            spec.dtype,
            spec.shape,
            digest,
            base_digest,
            changed,
            encoding,
            positions,
            source,
            STEPS,
        )

    def remove(self, name: str, base: Tensor | Stored) -> None:
        """The result has not this tensor of the base."""
        self.manifest.removed[name] = self._digest_of_base(name, base)

    def add_files(self, files: Mapping[str, bytes], base: Mapping[str, bytes]) -> None:
        """The result's configuration and tokenizer; stored where the base's file differs."""
        self.manifest.files = {
            name: hashlib.sha256(data).hexdigest() for name, data in files.items()
        }
        for name, data in files.items():
            if base.get(name) != data:
                self.manifest.stored_files[name] = len(data)
                self._store(f"file:{name}", data)

    def close(self) -> int:
        """Write the delta; returns its bytes."""
        manifest = self.manifest
        manifest.base = content_hash(manifest.base_digests())
        manifest.result = content_hash({n: e.digest for n, e in manifest.tensors.items()})
        metadata = {"format": FORMAT, "delta": manifest.to_json()}
        return write_checked(self.path, self._blobs, self._payload, metadata)

    def _digest_of_base(self, name: str, base: Tensor | Stored) -> str:
        return self._base_digests.get(name) or tensor_digest(base)

    def _store(self, name: str, data: Any) -> None:
        # Huffman codes and runs of one byte; `encoding.py` says what else was measured.
        compressor = zlib.compressobj(strategy=zlib.Z_RLE)
        start = self._payload.tell()
        for first in range(0, len(data), _CHUNK):
            self._payload.write(compressor.compress(data[first : first + _CHUNK]))
        self._payload.write(compressor.flush())
        self._blobs[name] = self._payload.tell() - start


def pack(
    base: StoredTensors,
    tuned: StoredTensors,
    path: Path,
    *,
    dtype: str | None = None,
    files: tuple[Mapping[str, bytes], Mapping[str, bytes]] | None = None,
    progress: Progress = iter,
) -> int:
    """Write the delta that turns one checkpoint into another.

    Args:
        base: the checkpoint it starts from.
        tuned: the checkpoint it gives.
        path: of the delta.
        dtype: give a view of the tuned checkpoint: its floating tensors rounded to this dtype
            (`bfloat16`). The base's are rounded alike, so that only what is visible in it counts
            as changed.
        files: small files of tuned and of base, see `small_files`; none packs tensors alone.
        progress: wraps the names as they are walked.

    Returns:
        Bytes of the delta.
    """
    with DeltaWriter(path) as writer:
        for name in progress(sorted(tuned.files)):
            before = base.stored(name) if name in base else None
            writer.add(name, _cast(tuned.stored(name), dtype), before)
        for name in sorted(base.files.keys() - tuned.files.keys()):
            writer.remove(name, base.stored(name))
        if files is not None:
            writer.add_files(with_dtype(files[0], dtype), files[1])
        return writer.close()


def _cast(stored: Stored, dtype: str | None) -> Stored:
    """A floating tensor rounded to `dtype`; any other, or without a dtype, as it is."""
    if dtype is None or stored.spec.dtype not in CASTS.values():
        return stored
    return stored.rounded(CASTS[dtype])


def small_files(folder: Path) -> dict[str, bytes]:
    """Configuration and tokenizer files of a model folder: text by its suffix, never code.

    Raises:
        ValueError: one is a link out of the folder.
    """
    return {
        path.name: named_file(folder, path.name).read_bytes()
        for path in sorted(folder.iterdir())
        if path.suffix in FILE_SUFFIXES
        and path.is_file()
        and not path.name.endswith(".safetensors.index.json")
        and not path.name.endswith(".bin.index.json")
    }


def with_dtype(files: Mapping[str, bytes], dtype: str | None) -> dict[str, bytes]:
    """The files with the config saying `dtype`, since transformers loads weights in that."""
    files = dict(files)
    if dtype is not None and CONFIG in files:
        config = json.loads(files[CONFIG])
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        if config.get(key) != dtype:
            files[CONFIG] = (json.dumps({**config, key: dtype}, indent=2) + "\n").encode()
    return files
