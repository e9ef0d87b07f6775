"""Traffic: against patches that are really encoded, and by hand."""

import pytest
import torch

from rlsgd.functional.patches import encode_positions
from rlsgd.planner.traffic import ddp_bytes, fsdp_bytes, sync_bytes

NUMEL = 2_000_000


@pytest.mark.parametrize("share", [0.0002, 0.001, 0.003, 0.01, 0.05, 0.2])
def test_sparse_bytes_are_those_of_random_patches(share: float):
    generator = torch.Generator().manual_seed(0)
    changed = torch.rand(NUMEL, generator=generator) < share
    positions = changed.nonzero().squeeze(1)
    _, encoded = encode_positions(positions, NUMEL)
    sparse = 2 * len(positions) + encoded.nbytes
    # four standard deviations of the number of changed entries
    assert sync_bytes(NUMEL, share, 2).sparse == pytest.approx(
        sparse, rel=4 / (share * NUMEL) ** 0.5
    )


def test_sync_at_the_ends():
    assert sync_bytes(100, 0.0, 2).sparse == 0
    for item in (2, 4):
        found = sync_bytes(1000, 1.0, item)
        assert found.dense == found.sparse == 1000 * item, "never more than all weights"


def test_one_percent_of_bfloat16_by_hand():
    """k = 10^7 of 10^9: two bytes each, and gaps in bytes, 1 / (1 - 0.99^255) = 1.0835 each."""
    found = sync_bytes(10**9, 0.01, 2)
    assert found.dense == 2 * 10**9
    assert found.sparse == pytest.approx(10**7 * (2 + 1.0835), rel=1e-4)


def test_traffic_of_shards_by_hand():
    # 4 ranks of 100 weights, 3 microbatches: 75 come from others, twice in 2 bytes, once in 4
    assert fsdp_bytes(100, 4, 3, compute=2) == 3 * 75 * (2 + 2 + 4)
    assert ddp_bytes(100, 4, gradient=4) == 2 * 75 * 4
    assert fsdp_bytes(100, 1, 3, compute=2) == ddp_bytes(100, 1, gradient=4) == 0
