"""Bytes over the network: weights to samplers, and what shards exchange."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SyncTraffic:
    """One update of one sampler's weights.

    Args:
        dense: every weight.
        sparse: positions and values of those that changed; `dense` where that is less.
    """

    dense: int
    sparse: int


def sync_bytes(num_weights: int, changed_share: float, item: int) -> SyncTraffic:
    """Dense: item x p. Sparse: k values of `item` bytes and the positions of k = share x p weights.

    Positions as in `rlsgd.functional.patches`, the shortest of a bitmap, p / 8, and gaps in words
    of w = 1 or 2 bytes. A gap g takes 1 + floor(g / e) words with e = 2^(8w) - 1; where changed
    weights lie uniformly at random, P(g >= n) = (1 - share)^n, so that the mean is
    1 / (1 - (1 - share)^e) words. Bytes of an average update; headers come on top.
    """
    dense = item * num_weights
    changed = changed_share * num_weights
    if changed == 0:
        return SyncTraffic(dense, 0)
    unchanged = 1 - changed_share
    gaps = [width * changed / (1 - unchanged ** (2 ** (8 * width) - 1)) for width in (1, 2)]
    positions = min(num_weights / 8, *gaps)
    return SyncTraffic(dense, min(dense, round(item * changed + positions)))


def fsdp_bytes(num_weights: int, ranks: int, microbatches: int, *, compute: int) -> int:
    """What one rank receives in a step of `microbatches` under FSDP2.

    Of each microbatch: all others' shards in the dtype of compute, for the forward and again for
    the backward pass, and its part of the others' gradients in float32:
    (2 compute + 4) p (n - 1) / n.
    """
    return microbatches * (2 * compute + 4) * num_weights * (ranks - 1) // ranks


def ddp_bytes(num_weights: int, ranks: int, *, gradient: int) -> int:
    """What one rank receives in a step under DDP: a ring's all-reduce, 2 g p (n - 1) / n."""
    return 2 * gradient * num_weights * (ranks - 1) // ranks
