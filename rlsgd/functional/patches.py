"""Sparse patches: the entries in which one tensor differs from another, and their new values.

A patch holds absolute values, so applying it is assignment and gives the very bits back; adding
differences would round (PULSE, arXiv:2602.03839, synchronises weights in this way). Two entries are
equal if their bits are: -0.0 differs from 0.0, and a nan equals a nan of the same payload.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BITMAP, GAPS8, GAPS16 = "bitmap", "gaps8", "gaps16"
_WORD_BYTES = {GAPS8: 1, GAPS16: 2}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Patch:
    """New values at changed places.

    Args:
        positions: [K] int64, strictly ascending, into the flattened tensor.
        values: [K] in the tensor's dtype.
    """

    positions: Tensor
    values: Tensor


@dataclass(frozen=True)
class EncodedPatch:
    """A patch as bytes.

    Args:
        encoding: of the positions, see `encode_positions`.
        positions: [P] uint8.
        values: [K * itemsize] uint8: the first byte of every value, then the second, ... . Sign and
            exponent repeat and mantissas do not, so a compressor wants them apart.
    """

    encoding: str
    positions: Tensor
    values: Tensor

    @property
    def nbytes(self) -> int:
        return len(self.positions) + len(self.values)


def bits(tensor: Tensor) -> Tensor:
    """The flattened tensor as integers of the same width; a view where it is contiguous.

    Raises:
        ValueError: its entries are wider than 8 bytes.
    """
    if tensor.element_size() not in _BITS:
        raise ValueError(f"{tensor.dtype} has entries of {tensor.element_size()} bytes, at most 8")
    return tensor.detach().reshape(-1).view(_BITS[tensor.element_size()])


def make_patch(weight: Tensor, base: Tensor) -> Patch:
    """What turns `base` into `weight`.

    Args:
        weight: any shape and dtype.
        base: the same shape, dtype and device.

    Raises:
        ValueError: shapes or dtypes differ.
    """
    if weight.shape != base.shape or weight.dtype != base.dtype:
        raise ValueError(
            f"a patch from {base.dtype} {tuple(base.shape)} to {weight.dtype} "
            f"{tuple(weight.shape)}: shape and dtype must be the same"
        )
    positions = (bits(weight) != bits(base)).nonzero().squeeze(1)
    return Patch(positions, weight.detach().reshape(-1)[positions])


@torch.no_grad()
def apply_patch_(tensor: Tensor, patch: Patch) -> Tensor:
    """Assign the patch's values to `tensor` in place, and return it.

    Raises:
        ValueError: the tensor is not contiguous, or the patch is of another dtype or size.
    """
    if not tensor.is_contiguous():
        raise ValueError("a patch is assigned in place, and this tensor is not contiguous")
    if patch.values.dtype != tensor.dtype or patch.values.shape != patch.positions.shape:
        raise ValueError(
            f"a patch of {len(patch.values)} {patch.values.dtype} values at "
            f"{len(patch.positions)} positions does not fit a tensor of {tensor.dtype}"
        )
    if len(patch.positions) and not 0 <= patch.positions[0] <= patch.positions[-1] < tensor.numel():
        raise ValueError(f"the patch reaches outside a tensor of {tensor.numel()} entries")
    bits(tensor)[patch.positions] = bits(patch.values)
    return tensor


def count_changed(weight: Tensor, base: Tensor) -> int:
    """How many entries differ in their bits; both of the same shape and dtype."""
    return int((bits(weight) != bits(base)).sum())


def encode_patch(patch: Patch, numel: int) -> EncodedPatch:
    """Positions in their shortest encoding, values as byte planes."""
    encoding, positions = encode_positions(patch.positions, numel)
    return EncodedPatch(encoding, positions, byte_planes(patch.values))


def decode_patch(encoded: EncodedPatch, numel: int, dtype: torch.dtype) -> Patch:
    """Inverse of `encode_patch`.

    Raises:
        ValueError: these are not the bytes of a patch for `numel` entries of `dtype`.
    """
    positions = decode_positions(encoded.positions, encoded.encoding, numel)
    if len(encoded.values) != len(positions) * dtype.itemsize:
        raise ValueError(
            f"{len(positions)} positions and {len(encoded.values)} bytes of {dtype} values"
        )
    return Patch(positions, from_byte_planes(encoded.values, dtype))


def encode_positions(positions: Tensor, numel: int) -> tuple[str, Tensor]:
    """The shortest of three encodings.

    `gaps8`, `gaps16`: how many entries lie between one position and the next, in words of one or
    two bytes (low bytes first, then high bytes). The largest word means "that many, and go on": at
    most numel / 65535 of them are needed, so no wider word is. `bitmap`: a bit for each entry, the
    first in the lowest bit; shortest where more than about one in eight changed.

    Args:
        positions: [K] strictly ascending, in [0, numel).
        numel: entries of the tensor.

    Returns:
        The encoding's name and its bytes, uint8.
    """
    gaps = _gaps(positions)
    sizes = {BITMAP: (numel + 7) // 8}
    for name, width in _WORD_BYTES.items():
        sizes[name] = width * (len(gaps) + int((gaps // _escape(width)).sum()))
    encoding = min(sizes, key=lambda name: sizes[name])
    if encoding == BITMAP:
        return encoding, _pack_bits(positions, numel)
    return encoding, _pack_gaps(gaps, _WORD_BYTES[encoding])


def decode_positions(data: Tensor, encoding: str, numel: int) -> Tensor:
    """Inverse of `encode_positions`: [K] int64.

    Raises:
        ValueError: these are not the bytes of positions below `numel`.
    """
    if encoding == BITMAP:
        if len(data) != (numel + 7) // 8:
            raise ValueError(f"a bitmap of {len(data)} bytes for {numel} entries")
        flags = data[:, None] >> torch.arange(8, dtype=torch.uint8, device=data.device) & 1
        positions = flags.reshape(-1).nonzero().squeeze(1)
    elif encoding in _WORD_BYTES:
        positions = _unpack_gaps(data, _WORD_BYTES[encoding])
    else:
        raise ValueError(f"positions in an unknown encoding: {encoding!r}")
    if len(positions) and positions[-1] >= numel:
        raise ValueError(f"position {int(positions[-1])} in a tensor of {numel} entries")
    return positions


def byte_planes(values: Tensor) -> Tensor:
    """[K] of any dtype -> [K * itemsize] uint8: all first bytes, all second bytes, and so on."""
    return bits(values).contiguous().view(torch.uint8).view(-1, values.element_size()).T.flatten()


def from_byte_planes(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """Inverse of `byte_planes`: [K] of `dtype`."""
    return planes.view(dtype.itemsize, -1).T.contiguous().view(-1).view(dtype)


def _escape(width: int) -> int:
    return 2 ** (8 * width) - 1


def _gaps(positions: Tensor) -> Tensor:
    """[K] entries between each position and the one before it; before the first is the start."""
    return positions.diff(prepend=positions.new_tensor([-1])) - 1


def _pack_gaps(gaps: Tensor, width: int) -> Tensor:
    escape = _escape(width)
    words = (gaps // escape + 1).cumsum(0)  # words used up to and with each gap
    packed = gaps.new_full((int(words[-1]) if len(words) else 0,), escape)
    packed[words - 1] = gaps % escape
    return torch.cat([packed >> 8 * byte & 255 for byte in range(width)]).to(torch.uint8)


def _unpack_gaps(data: Tensor, width: int) -> Tensor:
    if len(data) % width:
        raise ValueError(f"{len(data)} bytes are not words of {width}")
    planes = data.view(width, -1).long()
    words = sum(
        (plane << 8 * byte for byte, plane in enumerate(planes)), start=planes.new_zeros(())
    )
    ends = words != _escape(width)
    if len(words) and not ends[-1]:
        raise ValueError("the last gap between positions has no end")
    passed = words.cumsum(0)[ends]
    return passed + torch.arange(len(passed), device=data.device)


def _pack_bits(positions: Tensor, numel: int) -> Tensor:
    flags = positions.new_zeros((numel + 7) // 8 * 8, dtype=torch.uint8)
    flags[positions] = 1
    return (flags.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device=flags.device)).sum(
        1, dtype=torch.uint8
    )
