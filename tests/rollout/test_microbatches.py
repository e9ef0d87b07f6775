import random
from itertools import combinations

import pytest
import torch

from rlsgd.core.types import TokenBatch
from rlsgd.rollout.microbatches import computed_tokens, fill, split_rows


def as_lists(parts):
    return [[rows.tolist() for rows in microbatches] for microbatches in parts]


def test_minibatches_are_drawn_and_their_rows_in_order():
    costs = torch.ones(8, dtype=torch.long)
    shuffled = as_lists(split_rows(costs, minibatches=2, microbatches=2, seed=5))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5)).tolist()
    assert sorted(order) == list(range(8)) and order != list(range(8))
    first, second = sorted(order[:4]), sorted(order[4:])
    assert shuffled == [[first[:2], first[2:]], [second[:2], second[2:]]]


@pytest.mark.parametrize(
    ("costs", "together", "expected"),
    [
        ([1, 1, 1, 1, 1], 1, [[0, 1, 2], [3, 4]]),
        ([9, 1, 1, 1, 1], 1, [[0], [1, 2, 3, 4]]),  # by tokens, not by rows
        ([5, 1, 1, 5, 1, 1], 3, [[0, 1, 2], [3, 4, 5]]),
        ([9, 1, 1, 2, 1, 1], 3, [[0, 1, 2], [3, 4, 5]]),  # though 9 against 6 would be nearer
        ([5, 1, 1], 3, [[0], [1, 2]]),  # one group cannot stay whole in two microbatches
    ],
)
def test_rows_of_two_microbatches(costs: list[int], together: int, expected: list[list[int]]):
    found = split_rows(
        torch.tensor(costs), minibatches=1, microbatches=2, seed=0, together=together
    )
    assert as_lists(found) == [expected]


@pytest.mark.parametrize("seed", range(100))
def test_the_largest_part_is_as_small_as_any_cut_allows(seed: int):
    draw = random.Random(seed)
    costs = [draw.randint(1, 50) for _ in range(draw.randint(1, 9))]
    parts = draw.randint(1, len(costs))
    found = fill(costs, parts)
    assert len(found) == parts and all(costs[part] for part in found)
    assert [cost for part in found for cost in costs[part]] == costs
    best = min(
        max(sum(costs[a:b]) for a, b in zip([0, *cuts], [*cuts, len(costs)], strict=True))
        for cuts in combinations(range(1, len(costs)), parts - 1)
    )
    assert max(sum(costs[part]) for part in found) == best


def test_a_prompt_that_is_shared_is_counted_once():
    attention = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    completion = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]).bool()
    batch = TokenBatch(torch.zeros(3, 5).long(), attention, completion)
    assert computed_tokens(batch, 1).tolist() == [3, 4, 4]
    assert computed_tokens(batch, 3).tolist() == [3, 2, 1]
