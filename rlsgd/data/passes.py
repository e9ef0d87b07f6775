"""The order in which training walks through rows again and again."""

from __future__ import annotations

import random
from functools import lru_cache

from rlsgd.core.distributed import derived_seed


def rows_of_epoch(size: int, *, seed: int, epoch: int, count: int) -> list[int]:
    """Indices of the rows that make up an epoch: a function of its arguments alone.

    Epochs follow one another through all rows; each pass over them has another order, and none
    comes twice in a pass.

    Args:
        size: number of rows.
        seed: of the orders.
        epoch: counted from 0.
        count: rows of every epoch.
    """
    places = range(epoch * count, (epoch + 1) * count)
    return [_order_of_pass(size, seed, place // size)[place % size] for place in places]


@lru_cache(maxsize=8)
def _order_of_pass(size: int, seed: int, number: int) -> list[int]:
    order = list(range(size))
    random.Random(derived_seed("pass", seed, number)).shuffle(order)
    return order
