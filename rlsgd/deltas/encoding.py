"""Patches as bytes: where a tensor differs from its base, and by how many steps.

Values are differences of bit patterns, not of numbers, so that adding them rounds nothing: the
floating-point numbers of a dtype are numbered in ascending order, and a patch says how many numbers
further a weight went. A small update goes one or two, whose high byte is 0.

The bytes are then compressed by zlib with Huffman codes and runs (`Z_RLE`). SmolLM2 in bf16 with
0.9% of its weights changed, positions + values in MB, and CPU time for both: Z_RLE 1.16 + 0.92 in
0.07 s; Huffman codes alone 1.16 + 1.11 in 0.08; zlib 6 1.20 + 0.97 in 0.22; bzip2 1.33 + 1.00 in
0.80; LZMA 1.25 + 0.98 in 0.65. Absolute values, as the first format had them, took 1.16 + 1.83.

`functional/patches.py` codes positions alike for weights on an accelerator; here nothing needs
torch, whose import takes longer than the packing. Two entries are equal if their bits are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BITMAP, GAPS8, GAPS16 = "bitmap", "gaps8", "gaps16"
ABSOLUTE, STEPS = "absolute", "steps"
_WORD_BYTES = {GAPS8: 1, GAPS16: 2}


@dataclass(frozen=True)
class EncodedPatch:
    """A patch as bytes.

    Args:
        encoding: of the positions, see `encode_positions`.
        positions: [P] uint8.
        values: [K * itemsize] uint8: the first byte of every value, then the second, ... . High
            bytes repeat and low ones do not, so a compressor wants them apart.
    """

    encoding: str
    positions: np.ndarray
    values: np.ndarray


def encode_patch(words: np.ndarray, base: np.ndarray) -> tuple[int, EncodedPatch | None]:
    """How many entries changed, and the patch, or none where the whole tensor takes less.

    Args:
        words: [N] unsigned integers, the bits of the new entries.
        base: [N] of the same dtype, those of the old.
    """
    differs = words != base
    changed, numel, itemsize = int(np.count_nonzero(differs)), len(words), words.itemsize
    if changed * itemsize + min(changed, (numel + 7) // 8) > numel * itemsize:
        return changed, None  # by the least that positions can take, so that they need not be made
    places = np.flatnonzero(differs)
    encoding, positions = encode_positions(places, numel)
    if changed and len(positions) + changed * itemsize >= numel * itemsize:
        return changed, None
    steps = to_steps(words[places], base[places])
    return changed, EncodedPatch(encoding, positions, byte_planes(steps))


def apply_patch(base: np.ndarray, patch: EncodedPatch, values: str) -> np.ndarray:
    """The new entries.

    Args:
        base: [N] unsigned integers, the bits of the old entries.
        patch: what changed.
        values: `steps`, or `absolute` in deltas of the first format.

    Raises:
        ValueError: these are not the bytes of a patch for `base`.
    """
    places = decode_positions(patch.positions, patch.encoding, len(base))
    if len(patch.values) != len(places) * base.itemsize:
        raise ValueError(f"{len(places)} positions and {len(patch.values)} bytes of values")
    stored = from_byte_planes(patch.values, base.dtype)
    if values not in (ABSOLUTE, STEPS):
        raise ValueError(f"values in an unknown encoding: {values!r}")
    result = base.copy()
    result[places] = stored if values == ABSOLUTE else from_steps(stored, base[places])
    return result


def to_steps(words: np.ndarray, base: np.ndarray) -> np.ndarray:
    """[K] how many numbers up or down from base to words, as 0, -1, 1, -2, 2 ... -> 0, 1, 2 ..."""
    steps = (_ordered(words) - _ordered(base)).view(f"<i{words.itemsize}")
    return ((steps << 1) ^ (steps >> (8 * words.itemsize - 1))).view(words.dtype)


def from_steps(steps: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Inverse of `to_steps`: [K] words."""
    one = base.dtype.type(1)
    moved = (steps >> one) ^ (~(steps & one) + one)
    ordered = _ordered(base) + moved
    sign = _sign(base)
    return np.where(ordered & sign, ordered ^ sign, ~ordered)


def _ordered(words: np.ndarray) -> np.ndarray:
    """The bits of floating-point numbers -> integers in the order of the numbers, one to one."""
    sign = _sign(words)
    return np.where(words & sign, ~words, words | sign)


def _sign(words: np.ndarray) -> np.unsignedinteger:
    return words.dtype.type(1 << (8 * words.itemsize - 1))


def encode_positions(positions: np.ndarray, numel: int) -> tuple[str, np.ndarray]:
    """The shortest of three encodings, as `rlsgd.functional.patches.encode_positions` has them.

    Args:
        positions: [K] int64, strictly ascending, in [0, numel).
        numel: entries of the tensor.

    Returns:
        The encoding's name and its bytes, uint8.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    sizes = {BITMAP: (numel + 7) // 8}
    for name, width in _WORD_BYTES.items():
        sizes[name] = width * (len(gaps) + int((gaps // _escape(width)).sum()))
    encoding = min(sizes, key=lambda name: sizes[name])
    if encoding == BITMAP:
        flags = np.zeros(numel, np.uint8)
        flags[positions] = 1
        return encoding, np.packbits(flags, bitorder="little")
    width = _WORD_BYTES[encoding]
    ends = (gaps // _escape(width) + 1).cumsum()
    words = np.full(ends[-1] if len(ends) else 0, _escape(width), f"<u{width}")
    words[ends - 1] = gaps % _escape(width)
    return encoding, byte_planes(words)


def decode_positions(data: np.ndarray, encoding: str, numel: int) -> np.ndarray:
    """Inverse of `encode_positions`: [K] int64.

    Raises:
        ValueError: these are not the bytes of positions below `numel`.
    """
    if encoding == BITMAP:
        if len(data) != (numel + 7) // 8:
            raise ValueError(f"a bitmap of {len(data)} bytes for {numel} entries")
        positions = np.flatnonzero(np.unpackbits(data, bitorder="little"))
    elif encoding in _WORD_BYTES:
        width = _WORD_BYTES[encoding]
        if len(data) % width:
            raise ValueError(f"{len(data)} bytes are not words of {width}")
        words = from_byte_planes(data, np.dtype(f"<u{width}")).astype(np.int64)
        ends = words != _escape(width)
        if len(words) and not ends[-1]:
            raise ValueError("the last gap between positions has no end")
        passed = words.cumsum()[ends]
        positions = passed + np.arange(len(passed))
    else:
        raise ValueError(f"positions in an unknown encoding: {encoding!r}")
    if len(positions) and positions[-1] >= numel:
        raise ValueError(f"position {int(positions[-1])} in a tensor of {numel} entries")
    return positions


def byte_planes(words: np.ndarray) -> np.ndarray:
    """[K] of any width -> [K * itemsize] uint8: all first bytes, all second bytes, and so on."""
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, words.itemsize).T).reshape(-1)


def from_byte_planes(planes: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Inverse of `byte_planes`: [K] of `dtype`."""
    return np.ascontiguousarray(planes.reshape(dtype.itemsize, -1).T).reshape(-1).view(dtype)


def _escape(width: int) -> int:
    return 2 ** (8 * width) - 1
