"""Patches give every bit back, in bytes that are checked by hand."""

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlsgd.functional.patches import (
    EncodedPatch,
    Patch,
    apply_patch_,
    byte_planes,
    count_changed,
    decode_patch,
    decode_positions,
    encode_patch,
    encode_positions,
    from_byte_planes,
    make_patch,
)

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.bool,
    torch.complex64,
]


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@st.composite
def changes(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int]]:
    """(base, weight, places that differ): any bit patterns, nan payloads among them."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(), (0,), (3, 0), (1,), (7,), (8,), (9,), (4, 5), (2, 3, 700)]))
    numel = torch.Size(shape).numel()
    size = numel * dtype.itemsize
    data = torch.tensor(list(draw(st.randoms()).randbytes(size)), dtype=torch.uint8)
    if dtype == torch.bool:
        data &= 1
    places = sorted(draw(st.sets(st.integers(0, max(numel - 1, 0)), max_size=numel)))
    flipped = data.clone().view(-1, dtype.itemsize)
    flipped[places, draw(st.integers(0, dtype.itemsize - 1))] ^= 1
    base, weight = (
        part.reshape(-1).view(dtype).reshape(shape) if numel else torch.empty(shape, dtype=dtype)
        for part in (data, flipped)
    )
    return base, weight, places


@settings(deadline=None)
@given(changes())
def test_any_change_is_given_back_bit_for_bit(case: tuple[Tensor, Tensor, list[int]]):
    base, weight, places = case
    patch = make_patch(weight, base)
    assert patch.positions.tolist() == places
    assert count_changed(weight, base) == len(places)
    encoded = encode_patch(patch, weight.numel())
    decoded = decode_patch(encoded, weight.numel(), weight.dtype)
    before = raw(base)
    result = apply_patch_(base.clone(), decoded)
    assert raw(result) == raw(weight) and result.dtype == weight.dtype
    assert result.shape == weight.shape and raw(base) == before
    assert encoded.nbytes <= (weight.numel() + 7) // 8 + len(places) * weight.element_size()


@settings(deadline=None)
@given(st.sets(st.integers(0, 300_000), max_size=30), st.integers(0, 3))
def test_far_positions_come_back(positions: set[int], beyond: int):
    numel = max(positions, default=0) + 1 + beyond
    expected = torch.tensor(sorted(positions), dtype=torch.int64)
    encoding, data = encode_positions(expected, numel)
    assert torch.equal(decode_positions(data, encoding, numel), expected)


@pytest.mark.parametrize(
    ("positions", "numel", "encoding", "data"),
    [
        ([], 0, "bitmap", []),
        ([], 5, "gaps8", []),
        # 0 before the first, 2 between 0 and 3, 256 = 255 + 1 between 3 and 260
        ([0, 3, 260], 1000, "gaps8", [0, 2, 255, 1]),
        ([254], 9999, "gaps8", [254]),
        ([255], 9999, "gaps8", [255, 0]),
        # 70000 = 65535 + 4465, and 4465 = 17 * 256 + 113: low bytes, then high bytes
        ([70_000], 10**6, "gaps16", [255, 113, 255, 17]),
        # a byte for each gap would be 3; the ninth bit is the lowest of the second byte
        ([0, 1, 9], 10, "bitmap", [0b11, 0b10]),
    ],
)
def test_positions_by_hand(positions: list[int], numel: int, encoding: str, data: list[int]):
    found, encoded = encode_positions(torch.tensor(positions, dtype=torch.int64), numel)
    assert (found, encoded.tolist()) == (encoding, data)
    assert encoded.dtype == torch.uint8


def test_byte_planes_by_hand():
    values = torch.tensor([0x04030201, 0x14131211], dtype=torch.int32)
    planes = byte_planes(values)
    assert planes.tolist() == [0x01, 0x11, 0x02, 0x12, 0x03, 0x13, 0x04, 0x14]
    assert torch.equal(from_byte_planes(planes, torch.int32), values)


def test_zeros_of_either_sign_differ_and_a_nan_is_told_by_its_payload():
    def from_bits(*patterns: int) -> Tensor:
        return torch.frombuffer(
            bytearray(struct.pack(f"<{len(patterns)}I", *patterns)), dtype=torch.float32
        )

    base = from_bits(0x00000000, 0x7FC00000, 0x7FC00000, 0x7F800001)
    weight = from_bits(0x80000000, 0x7FC00000, 0x7FC00001, 0x7F800001)
    patch = make_patch(weight, base)
    assert patch.positions.tolist() == [0, 2]
    assert raw(apply_patch_(base, patch)) == raw(weight)


def test_a_strided_weight_is_read_in_its_own_order():
    base = torch.zeros(2, 3)
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]).T
    assert make_patch(weight, base).positions.tolist() == [1, 5]
    assert make_patch(weight, base).values.tolist() == [1.0, 2.0]


def test_a_parameter_is_patched_in_place():
    parameter = torch.nn.Parameter(torch.zeros(3))
    pointer = parameter.data_ptr()
    patched = apply_patch_(parameter, Patch(torch.tensor([1]), torch.tensor([5.0])))
    assert patched is parameter and parameter.data_ptr() == pointer
    assert parameter.tolist() == [0.0, 5.0, 0.0] and parameter.requires_grad


def test_positions_without_their_values_are_refused():
    encoded = EncodedPatch("gaps8", torch.zeros(2, dtype=torch.uint8), torch.zeros(7).byte())
    with pytest.raises(ValueError, match="2 positions and 7 bytes"):
        decode_patch(encoded, 5, torch.float32)


@pytest.mark.parametrize(
    ("tensor", "patch", "message"),
    [
        (torch.zeros(2, 3).T, Patch(torch.tensor([0]), torch.ones(1)), "not contiguous"),
        (torch.zeros(3), Patch(torch.tensor([3]), torch.ones(1)), "outside a tensor of 3"),
        (torch.zeros(3), Patch(torch.tensor([-1]), torch.ones(1)), "outside a tensor of 3"),
        (torch.zeros(3), Patch(torch.tensor([0]), torch.ones(2)), "does not fit"),
        (torch.zeros(3), Patch(torch.tensor([0]), torch.ones(1).int()), "does not fit"),
    ],
)
def test_a_patch_of_another_tensor_is_refused(tensor: Tensor, patch: Patch, message: str):
    with pytest.raises(ValueError, match=message):
        apply_patch_(tensor, patch)
    assert not tensor.any()


@pytest.mark.parametrize("base", [torch.zeros(4), torch.zeros(3).bfloat16(), torch.zeros(3).int()])
def test_shape_and_dtype_must_be_those_of_the_base(base: Tensor):
    with pytest.raises(ValueError, match="must be the same"):
        make_patch(torch.zeros(3), base)


def test_entries_of_sixteen_bytes_are_refused():
    with pytest.raises(ValueError, match="16 bytes"):
        make_patch(torch.zeros(1, dtype=torch.complex128), torch.zeros(1, dtype=torch.complex128))
