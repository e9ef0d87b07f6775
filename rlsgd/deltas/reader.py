"""Reading a delta, one tensor at a time."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlsgd.core.named_files import named_file
from rlsgd.core.stored import Stored
from rlsgd.deltas.container import CheckedFile
from rlsgd.deltas.encoding import EncodedPatch, apply_patch, from_byte_planes
from rlsgd.deltas.manifest import (
    COPY,
    PATCH,
    READABLE,
    SAME,
    WHOLE,
    Entry,
    Manifest,
    tensor_digest,
    viewed,
)
from rlsgd.deltas.pack import FILE_SUFFIXES


class Delta:
    """A delta on disk, undamaged.

    Raises:
        ValueError: it is damaged, or not a delta of this format.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = CheckedFile(path)
        if self.file.metadata.get("format") not in READABLE:
            raise ValueError(
                f"{path} has the format {self.file.metadata.get('format')!r}, and this version "
                f"of rlsgd reads {' and '.join(READABLE)}"
            )
        try:
            self.manifest = Manifest.from_json(self.file.metadata["delta"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} does not describe itself as a delta does: {error}") from error
        for name in {**(self.manifest.files or {}), **self.manifest.stored_files}:
            try:
                is_plain = named_file(Path("OUT"), name).name == name
            except ValueError:
                is_plain = False
            if not is_plain or Path(name).suffix not in FILE_SUFFIXES:
                raise ValueError(f"{path} would write a file called {name!r}, which is refused")

    def stored_bytes(self, name: str) -> int:
        """What one tensor takes in the file."""
        return sum(self.file.size(f"{name}:{part}") for part in ("positions", "values", "whole"))

    def tensor(self, name: str, before: Callable[[str], Stored]) -> Stored:
        """One tensor of the result.

        Args:
            name: of the tensor.
            before: gives tensors of the base.

        Raises:
            ValueError: base and delta do not give what the delta says they do.
        """
        entry = self.manifest.tensors[name]
        if entry.kind == COPY and entry.source in self.manifest.tensors:
            source = self.manifest.tensors[entry.source]
            value = self._value(entry.source, source, before)
        else:
            value = self._value(name, entry, before)
        if tensor_digest(value) != entry.digest:
            raise ValueError(f"{self.path} does not give {name} as it was: its checksum differs")
        return value

    def small_file(self, name: str) -> bytes:
        """A configuration or tokenizer file that the delta holds."""
        return self._read(f"file:{name}", self.manifest.stored_files[name]).tobytes()

    def _value(self, name: str, entry: Entry, before: Callable[[str], Stored]) -> Stored:
        spec = entry.spec
        if entry.kind == WHOLE:
            planes = self._read(f"{name}:whole", spec.nbytes)
            words = from_byte_planes(planes, np.dtype(f"<u{spec.itemsize}"))
            return Stored(spec, words.view(np.uint8))
        base = viewed(before(name), spec) if entry.kind in (SAME, PATCH) else None
        if base is None:
            raise ValueError(f"{self.path} stores {name} as {entry.kind!r}, which cannot be read")
        if entry.kind == SAME:
            return base
        words = apply_patch(base.words, self._patch(name, entry), entry.values)
        return Stored(spec, words.view(np.uint8))

    def _patch(self, name: str, entry: Entry) -> EncodedPatch:
        values = entry.changed * entry.spec.itemsize
        if entry.changed > entry.spec.numel or entry.positions > (entry.spec.numel + 7) // 8:
            raise ValueError(f"{self.path}: the patch of {name} is larger than it can be")
        return EncodedPatch(
            entry.encoding or "",
            self._read(f"{name}:positions", entry.positions),
            self._read(f"{name}:values", values),
        )

    def _read(self, blob: str, size: int) -> np.ndarray:
        """Decompress at most what is expected: a small file must not fill the memory."""
        decompressor = zlib.decompressobj()
        data = decompressor.decompress(self.file.read(blob), size + 1)
        if len(data) != size or not decompressor.eof:
            raise ValueError(f"{self.path}: {blob} has not the {size} bytes that it should have")
        return np.frombuffer(data, np.uint8)
