"""The bytes of patches on disk: by hand, against the ones of `functional/patches.py`, and small."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsgd.core.checkpoints import LazyTensors
from rlsgd.deltas.apply import apply
from rlsgd.deltas.container import write_checked
from rlsgd.deltas.encoding import (
    EncodedPatch,
    apply_patch,
    byte_planes,
    decode_positions,
    encode_patch,
    encode_positions,
    from_steps,
    to_steps,
)
from rlsgd.deltas.pack import pack
from rlsgd.deltas.reader import Delta
from rlsgd.functional import patches
from tests.deltas.delta_models import assert_same, example, saved


def bf16(*values: float) -> np.ndarray:
    return torch.tensor(values).bfloat16().view(torch.uint16).numpy()


def test_steps_by_hand():
    """The numbers of bfloat16 in order: ... -0.0, 0.0, 2^-133, ...; 0, -1, 1, -2 become 0 to 3."""
    base = bf16(1.0, 1.0, 1.0, 0.0, -0.0, 0.0, -1.0, 255.0)
    new = bf16(1.0, 1 - 2**-8, 1 + 2**-7, -0.0, 0.0, 2**-133, -1 - 2**-7, 258.0)
    # 255, 256, 258: numbers above 256 are 2 apart
    assert to_steps(new, base).tolist() == [0, 1, 2, 1, 2, 2, 1, 4]


@settings(deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.randoms(), st.integers(0, 50))
def test_steps_lead_back_between_any_two_bit_patterns(width: int, random, count: int):
    new, base = (np.frombuffer(random.randbytes(count * width), f"<u{width}") for _ in range(2))
    edges = np.array([0, 1, -1, 1 << (8 * width - 1), (1 << (8 * width - 1)) - 1], object)
    edges = (edges % (1 << 8 * width)).astype(f"<u{width}")
    new, base = np.append(new, edges), np.append(base, edges[::-1])
    assert (from_steps(to_steps(new, base), base) == new).all()


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 200_000), st.integers(0, 10**6))
def test_positions_are_coded_as_the_accelerator_codes_them(kept: int, numel: int, seed: int):
    """Two implementations, the same bytes; one in 10^kept entries changed."""
    places = np.flatnonzero(np.random.default_rng(seed).random(numel) < 10.0**-kept)
    encoding, data = encode_positions(places, numel)
    theirs, expected = patches.encode_positions(torch.from_numpy(places), numel)
    assert encoding == theirs and data.tolist() == expected.tolist()
    assert decode_positions(data, encoding, numel).tolist() == places.tolist()


def test_a_tensor_of_which_all_changed_is_shorter_whole():
    base = np.arange(64, dtype="<u4")
    new = base + 1
    assert encode_patch(new, base) == (64, None)
    new[10:] = base[10:]
    changed, patch = encode_patch(new, base)
    # a bitmap of 64 bits, or 10 gaps of a byte: the bitmap; and 10 values
    assert changed == 10 and patch is not None and patch.encoding == "bitmap"
    assert (len(patch.positions), len(patch.values)) == (8, 40)
    # a bitmap of one byte and seven values take the eight bytes of the tensor: no gain
    assert encode_patch(np.arange(8, dtype="u1"), np.zeros(8, "u1")) == (7, None)
    changed, patch = encode_patch(base, base)
    assert changed == 0 and patch is not None
    assert len(patch.positions) == len(patch.values) == 0


@pytest.mark.parametrize(
    ("encoding", "data", "numel", "message"),
    [
        ("gaps32", [0], 1, "unknown encoding"),
        ("bitmap", [0, 0], 8, "bitmap of 2 bytes for 8"),
        ("bitmap", [0b1000], 3, "position 3 in a tensor of 3"),
        ("gaps8", [1], 1, "position 1 in a tensor of 1"),
        ("gaps8", [0, 255], 900, "has no end"),
        ("gaps16", [0, 0, 0], 900, "3 bytes are not words of 2"),
    ],
)
def test_bytes_that_are_no_positions_are_refused(encoding, data, numel, message):
    with pytest.raises(ValueError, match=message):
        decode_positions(np.array(data, np.uint8), encoding, numel)
    with pytest.raises(ValueError, match=message):
        patches.decode_positions(torch.tensor(data, dtype=torch.uint8), encoding, numel)


def test_values_that_do_not_fit_are_refused():
    base = np.zeros(5, "<u4")
    positions = np.zeros(2, np.uint8)
    with pytest.raises(ValueError, match="2 positions and 7 bytes"):
        apply_patch(base, EncodedPatch("gaps8", positions, np.zeros(7, np.uint8)), "steps")
    with pytest.raises(ValueError, match="unknown encoding: 'ratios'"):
        apply_patch(base, EncodedPatch("gaps8", positions, np.zeros(8, np.uint8)), "ratios")


def test_one_step_of_a_weight_takes_two_bits_beside_its_place(tmp_path: Path):
    """Of 100,000 bfloat16 weights 1,000 go one number up or down; absolute values took 16 bits."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(100_000, generator=generator).bfloat16()
    tuned = base.clone()
    places = torch.randperm(len(base), generator=generator)[:1000]
    signs = torch.randint(0, 2, (1000,), generator=generator) * 2 - 1
    tuned.view(torch.int16)[places] += signs.to(torch.int16)
    start = saved({"w": base}, tmp_path / "base.safetensors")
    goal = saved({"w": tuned}, tmp_path / "tuned.safetensors")
    pack(start, goal, tmp_path / "delta.safetensors")
    delta = Delta(tmp_path / "delta.safetensors")
    assert delta.manifest.tensors["w"].changed == 1000
    assert delta.file.size("w:values") < 1000 * 2 / 8
    # a place among 100 takes at least log2(100) + 1/ln(2) = 8.1 bits, and Huffman codes near that
    assert delta.file.size("w:positions") < 1.1 * 1000 * 8.1 / 8
    apply(start, [delta], tmp_path / "out")
    assert_same(LazyTensors.open(tmp_path / "out"), {"w": tuned})


# ---- formats


def test_a_delta_of_the_first_format_is_read(tmp_path: Path):
    """`format_1.safetensors` was written by rlsgd 0.2.0 before steps: values are absolute there."""
    base, tuned = example()
    base["patched"] = torch.arange(100.0).bfloat16()
    tuned["patched"] = base["patched"].clone()
    tuned["patched"][[3, 77]] = torch.tensor([-0.0, torch.nan]).bfloat16()
    tuned["tied"] = tuned["patched"].clone()
    old = Delta(Path(__file__).with_name("format_1.safetensors"))
    assert old.file.metadata["format"] == "rlsgd-delta-1"
    assert {entry.values for entry in old.manifest.tensors.values()} == {"absolute"}
    start = saved(base, tmp_path / "base.safetensors")
    apply(start, [old], tmp_path / "out")
    assert_same(LazyTensors.open(tmp_path / "out"), tuned)
    # base and result have the same names in both formats, so that a chain may mix them
    pack(start, saved(tuned, tmp_path / "tuned.safetensors"), tmp_path / "new")
    new = Delta(tmp_path / "new")
    assert new.file.metadata["format"] == "rlsgd-delta-2"
    assert (new.manifest.base, new.manifest.result) == (old.manifest.base, old.manifest.result)


def test_a_format_of_tomorrow_is_refused_by_its_name(tmp_path: Path):
    path = tmp_path / "delta.safetensors"
    with open(tmp_path / "empty", "w+b") as payload:
        write_checked(path, {}, payload, {"format": "rlsgd-delta-3", "delta": json.dumps({})})
    with pytest.raises(ValueError, match=r"'rlsgd-delta-3'.*reads rlsgd-delta-1 and rlsgd-delta-2"):
        Delta(path)


def test_byte_planes_by_hand():
    words = np.array([0x04030201, 0x14131211], "<u4")
    assert byte_planes(words).tolist() == [0x01, 0x11, 0x02, 0x12, 0x03, 0x13, 0x04, 0x14]
