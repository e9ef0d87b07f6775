import math

import pytest
import torch

from rlsgd.functional.visibility import PathLength, Visibility, half_ulp_bf16, visibility

SMALLEST = 2.0**-133  # bfloat16 above 0
NORMAL = 2.0**-126


def bfloat16_numbers():
    """Every positive finite bfloat16 number, in order, but for the largest."""
    return torch.arange(1, 0x7F7F, dtype=torch.int16).view(torch.bfloat16).float()


@pytest.mark.parametrize(
    ("weight", "by_hand"),
    [
        (1.0, 2.0**-8),
        (1.9999, 2.0**-8),
        (2.0, 2.0**-7),
        (-1.5, 2.0**-8),
        (0.02, 2.0**-14),  # 2^-6 <= 0.02 < 2^-5: the 6e-5 of a typical weight
        (1e-4, 2.0**-22),  # 2^-14 = 6.1e-5
        (NORMAL, 2.0**-134),
        (NORMAL / 2, 2.0**-134),
        (2.0**-149, 2.0**-134),
        (0.0, 2.0**-134),
        (-0.0, 2.0**-134),
        (3.0e38, 2.0**119),
    ],
)
def test_half_ulp_by_hand(weight: float, by_hand: float):
    half = half_ulp_bf16(torch.tensor([[weight]]))
    assert half.shape == (1, 1) and half.dtype == torch.float64
    assert half.item() == by_hand


def test_what_is_not_finite_has_no_ulp():
    assert half_ulp_bf16(torch.tensor([torch.inf, -torch.inf, torch.nan])).isnan().all()


def test_half_ulp_is_half_the_way_to_the_next_number_for_every_number():
    numbers = bfloat16_numbers()
    gaps = numbers[1:].double() - numbers[:-1].double()
    assert torch.equal(2 * half_ulp_bf16(numbers[:-1]), gaps)
    assert torch.equal(half_ulp_bf16(-numbers), half_ulp_bf16(numbers))


def test_torch_rounds_where_the_half_ulp_says_at_every_number():
    """Just below half an ulp a move is absorbed, just above it is seen; ties go to even."""
    numbers = bfloat16_numbers()[:-1]
    half = half_ulp_bf16(numbers)
    below, above = half * (1 - 2.0**-10), half * (1 + 2.0**-10)

    def seen(distance: torch.Tensor) -> torch.Tensor:
        moved = numbers.double() + distance
        # float32 holds the sum, unless it is subnormal: then its last place is 2^-149
        assert torch.equal(moved.float().double(), moved)
        return moved.float().bfloat16() != numbers.bfloat16()

    assert not seen(below).any()
    assert seen(above).all()
    odd = numbers.bfloat16().view(torch.int16) % 2 == 1
    assert torch.equal(seen(half), odd)
    # downwards: the same, but for powers of two, whose neighbour below is half as far
    powers = (numbers.bfloat16().view(torch.int16) % 128 == 0) & (numbers > NORMAL)
    assert int(powers.sum()) == 253
    assert torch.equal(seen(-below), powers)
    assert seen(-above).all()
    assert not seen(torch.where(powers, -below / 2, 0.0)).any()
    assert seen(torch.where(powers, -above / 2, -above)).all()


def test_a_step_by_hand():
    before = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0 + 2.0**-9, 0.0, -2.0, 1e-3])
    move = torch.tensor([0.0, 2.0**-10, 2.0**-8, 2.0**-7, 2.0**-8, 2.0**-140, 2.0**-8, 0.0])
    counts = visibility(before + move, before)
    # 2^-8 is half an ulp at 1: a tie that goes to the even 1; from 1 + 2^-9 it is above it.
    # 2^-8 off -2 is half of half an ulp, but towards zero from a power of two: a tie again
    assert (counts.unmoved, counts.absorbed, counts.changed) == (2, 4, 2)
    assert counts.fractions() == {
        "changed_bf16": 2 / 8,
        "absorbed": 4 / 8,
        "unmoved": 2 / 8,
        "below_half_ulp": 3 / 8,  # 2^-10 at 1, 2^-140 at 0, 2^-8 at -2
    }
    assert counts.length == math.sqrt(
        2.0**-20 + 2.0**-16 + 2.0**-14 + 2.0**-16 + 2.0**-280 + 2.0**-16
    )
    ratio = counts.ratio
    assert (ratio.numel, ratio.zeros) == (8, 2)
    assert ratio.sum == 0.25 + 1 + 2 + 1 + 2.0**-6 + 0.5
    assert ratio.quantile(0.25) == 0.0
    assert ratio.quantile(1.0) == pytest.approx(2.0, rel=6e-3)  # as fine as its bins


def test_parts_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(50, 8, generator=generator) / 50
    weight = before + torch.randn(50, 8, generator=generator) * 10.0 ** torch.arange(-9, -1)
    parts = [visibility(*p) for p in zip(weight.split([7, 43]), before.split([7, 43]), strict=True)]
    total, whole = sum(parts, Visibility()), visibility(weight, before)
    assert total.fractions() == whole.fractions()
    assert sum(list(total.fractions().values())[:3]) == 1.0
    assert all(0 < share < 1 for share in list(total.fractions().values())[:2])
    assert total.length == pytest.approx(float((weight - before).norm()), rel=1e-6)
    assert torch.equal(total.ratio.counts, whole.ratio.counts)


def test_bfloat16_weights_absorb_nothing_any_more():
    before = torch.tensor([1.0, 2.0]).bfloat16()
    counts = visibility(before + torch.tensor([2.0**-7, 2.0**-9]).bfloat16(), before)
    assert (counts.changed, counts.absorbed, counts.unmoved) == (1, 0, 1)


def test_a_path_by_hand():
    straight, back_and_forth, square = PathLength(), PathLength(), PathLength()
    for _ in range(4):
        for path in (straight, back_and_forth, square):
            path.add(2.0)
    assert straight.summary(8.0) == {
        "path_length": 8.0,
        "random_walk_length": 4.0,
        "coherence": 1.0,
        "displacement_over_random_walk": 2.0,
    }
    assert back_and_forth.summary(0.0)["coherence"] == 0.0
    assert square.summary(4.0)["displacement_over_random_walk"] == 1.0
    assert PathLength().summary(0.0) == {"path_length": 0.0, "random_walk_length": 0.0}
