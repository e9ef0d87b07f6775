"""What a delta says about itself: how each tensor is stored, and checksums of base and result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rlsgd.core.stored import DTYPES, Spec, Stored
from rlsgd.deltas.encoding import ABSOLUTE

if TYPE_CHECKING:
    from torch import Tensor

# the first format has absolute values in its patches, the second steps from the base's
FORMAT, READABLE = "rlsgd-delta-2", ("rlsgd-delta-1", "rlsgd-delta-2")
SAME, PATCH, WHOLE, COPY = "same", "patch", "whole", "copy"
CASTS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True)
class Entry:
    """One tensor of the result.

    Args:
        kind: `same` as the base's in the result's dtype, a `patch` to that, stored `whole`, or a
            `copy` of another tensor of the result.
        dtype: in the result, by its name in safetensors.
        shape: in the result.
        digest: of the result, see `tensor_digest`.
        base: digest of the base's tensor; none where the base has none.
        changed: entries whose bits differ from the base's; all of them where `whole` or `copy`
            replaces nothing that could be compared.
        encoding: of a patch's positions.
        positions: bytes of a patch's positions before compression.
        source: the tensor that a copy is of.
        values: `steps` from the base's values, or `absolute` ones, as the first format has.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    digest: str
    base: str | None
    changed: int
    encoding: str | None = None
    positions: int = 0
    source: str | None = None
    values: str = ABSOLUTE

    @property
    def spec(self) -> Spec:
        return Spec(self.dtype, tuple(self.shape))


@dataclass
class Manifest:
    """Contents of a delta.

    Args:
        base: content hash of the checkpoint it starts from.
        result: content hash of the checkpoint it gives.
        tensors: every tensor of the result.
        removed: digests of the base's tensors that the result has not.
        files: SHA-256 of the result's configuration and tokenizer files; none where only tensors
            were packed, and the base's files stay as they are.
        stored_files: bytes of those that are in the delta, since the base's differ.
    """

    base: str = ""
    result: str = ""
    tensors: dict[str, Entry] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] | None = None
    stored_files: dict[str, int] = field(default_factory=dict)

    def base_digests(self) -> dict[str, str]:
        """Digests of the base's tensors."""
        kept = {n: entry.base for n, entry in self.tensors.items() if entry.base is not None}
        return kept | self.removed

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        raw: dict[str, Any] = json.loads(text)
        entries = {n: Entry(**{**e, "shape": tuple(e["shape"])}) for n, e in raw["tensors"].items()}
        for name, entry in entries.items():
            if entry.dtype not in DTYPES:
                raise ValueError(f"{name} has the unknown dtype {entry.dtype!r}")
        return cls(**{**raw, "tensors": entries})


def tensor_digest(tensor: Tensor | Stored) -> str:
    """SHA-256 over dtype, shape and the bytes of the entries."""
    stored = Stored.of(tensor)
    spec = stored.spec
    digest = hashlib.sha256(json.dumps([spec.dtype, list(spec.shape)]).encode())
    digest.update(stored.buffer)
    return digest.hexdigest()


def content_hash(digests: Mapping[str, str]) -> str:
    """Of a whole checkpoint: the same however it is sharded and in whatever order it is stored."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def viewed(stored: Stored, spec: Spec) -> Stored | None:
    """The base's tensor in the result's dtype, or none where the two cannot be compared.

    Floating tensors are cast, as loading them for training in another precision does: a float32 run
    from a bfloat16 checkpoint is compared with that checkpoint's values in float32.
    """
    if stored.spec.shape != spec.shape:
        return None
    if stored.spec.dtype == spec.dtype:
        return stored
    return (
        stored.rounded(spec.dtype)
        if {stored.spec.dtype, spec.dtype} <= set(CASTS.values())
        else None
    )


def first_names(names: Iterable[str]) -> str:
    """At most three of them, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
