"""Rounded weights: nearest against real bfloat16, stochastic against its distribution."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
from torch.func import functional_call
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from rlsgd.core.distributed import derived_seed
from rlsgd.optimizers import OptimizerContainer
from rlsgd.optimizers.rounding import keep_rounded, round_nearest, round_stochastic, round_weights

OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "sgd-momentum": lambda p: SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: AdamW(p, lr=3e-3, weight_decay=0.1),
}
DRAWS = 200_000


def network():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def gradients(model, weights, step):
    """Of a regression whose data are new in each step, at the given float32 weights."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 4, generator=generator)
    loss = (functional_call(model, weights, inputs) - 1).square().mean()
    return torch.autograd.grad(loss, list(weights.values()))


def in_bfloat16(make, steps):
    """Parameters that are stored in bfloat16; gradient and update are computed in float32."""
    model = network()
    stored = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    working = {name: nn.Parameter(p.float()) for name, p in stored.items()}
    optimizer = make(working.values())
    for step in range(steps):
        for name, value in stored.items():
            working[name].data = value.float()
        for p, gradient in zip(working.values(), gradients(model, working, step), strict=True):
            p.grad = gradient
        optimizer.step()
        stored = {name: p.detach().bfloat16() for name, p in working.items()}
    return stored


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        weights = dict(model.named_parameters())
        for p, gradient in zip(weights.values(), gradients(model, weights, step), strict=True):
            p.grad = gradient
        optimizer.step()


class Counted:
    """A seed for each step, as a run's global step gives it."""

    def __init__(self, seed=0, step=0):
        self.seed, self.step = seed, step

    def __call__(self, *place):
        return derived_seed(self.seed, self.step, *place)

    def attach(self, optimizer):
        keep_rounded(optimizer, "stochastic", self)
        optimizer.register_step_post_hook(lambda *_: setattr(self, "step", self.step + 1))
        return optimizer


def on_grid(tensor):
    return torch.equal(tensor.bfloat16().float(), tensor)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_nearest_is_training_in_bfloat16_bit_for_bit(make):
    model = network()
    optimizer = make(model.parameters())
    keep_rounded(optimizer, "nearest")
    train(model, optimizer, 40)
    stored = in_bfloat16(make, 40)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, stored[name].float()), name
    unrounded = network()
    train(unrounded, make(unrounded.parameters()), 40)
    assert not on_grid(unrounded[0].weight), "the rounding of this run must matter"


def test_updates_below_half_a_step_of_bfloat16_are_lost_to_nearest_and_kept_by_stochastic():
    # neighbours of 1 are 1 - 2^-8 and 1 + 2^-7; 400 steps of 2^-11 are 0.1953 in sum
    moved = {}
    for rounding in ("nearest", "stochastic"):
        weight = nn.Parameter(torch.ones(1000))
        weight.grad = torch.ones(1000)
        optimizer = SGD([weight], lr=2.0**-11)
        counted = Counted()
        keep_rounded(optimizer, rounding, counted)
        for counted.step in range(400):
            optimizer.step()
        moved[rounding] = float((1 - weight.data.double()).mean())
    assert moved["nearest"] == 0.0
    # a step's variance is at most 2^-11 (2^-8 - 2^-11), of the mean of 1000 walks of 400 steps:
    error = math.sqrt(400 / 1000 * 2.0**-11 * (2.0**-8 - 2.0**-11))
    assert abs(moved["stochastic"] - 400 * 2.0**-11) < 4 * error


@pytest.mark.parametrize("value", [0.1, -0.1, 1.001, -3.3e-5, 7.7e8, -1e-39, 3.395e38])
def test_stochastic_takes_one_of_both_neighbours_with_the_right_probability(value):
    number = torch.tensor(value)
    nearest = number.bfloat16()
    towards = math.inf if nearest.float() < number else -math.inf
    other = torch.nextafter(nearest, torch.tensor(towards, dtype=torch.bfloat16))
    low, high = sorted((float(nearest), float(other)))
    assert low < float(number) < high
    draws = round_stochastic(number.repeat(DRAWS), torch.Generator().manual_seed(1)).double()
    assert sorted(set(draws.tolist())) == [low, high]
    if math.isinf(high):  # beyond the largest number of bfloat16 the other neighbour is infinite
        high = 2.0**128
    up = (float(number) - low) / (high - low)
    share = float((draws > low).double().mean())
    error = math.sqrt(up * (1 - up) / DRAWS)
    # the chance is a multiple of 2^-16, which is exact for a float32
    assert abs(share - up) < 4 * error
    mean = low + share * (high - low)
    assert abs(mean - float(number)) < 4 * error * (high - low)


def test_every_bfloat16_number_stays_under_both_roundings():
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    numbers = patterns.view(torch.bfloat16).float()
    generator = torch.Generator().manual_seed(0)
    for rounded in (round_nearest(numbers), round_stochastic(numbers, generator)):
        assert torch.equal(rounded[~numbers.isnan()], numbers[~numbers.isnan()])
        assert torch.equal(rounded.isnan(), numbers.isnan())
        zeros = numbers == 0
        assert torch.equal(rounded[zeros].signbit(), numbers[zeros].signbit())


def test_nan_of_any_pattern_stays_nan():
    """Cut off or carried into, these would become infinite, or zero."""
    patterns = torch.tensor([0x7F800001, 0x7FFFFFFF, 0x7F80FFFF, -1, -(1 << 23) + 1])
    numbers = patterns.to(torch.int32).view(torch.float32)
    assert numbers.isnan().all()
    for seed in range(20):
        assert round_stochastic(numbers, torch.Generator().manual_seed(seed)).isnan().all()
    assert round_nearest(numbers).isnan().all()


def test_random_numbers_follow_step_parameter_and_seed():
    def rounded(seed, step):
        pair = [torch.full((512,), 1 + 2.0**-8) for _ in range(2)]
        round_weights(pair, "stochastic", Counted(seed, step))
        assert all(on_grid(tensor) for tensor in pair)
        return pair

    first, second = rounded(0, 0)
    assert not torch.equal(first, second)
    assert [torch.equal(a, b) for a, b in zip(rounded(0, 0), (first, second), strict=True)] == [
        True,
        True,
    ]
    for other in (rounded(0, 1), rounded(1, 0)):
        assert not torch.equal(other[0], first) and not torch.equal(other[1], second)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def start():
        model = network()
        parts = [AdamW(model[0].parameters(), lr=1e-2), SGD(model[2].parameters(), lr=1e-2)]
        return model, OptimizerContainer(parts), Counted(seed=5)

    model, optimizer, counted = start()
    counted.attach(optimizer)
    train(model, optimizer, 3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed, other, continued = start()
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    continued.step = counted.step
    continued.attach(other).load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    train(model, optimizer, 3, first=3)
    train(resumed, other, 3, first=3)
    for ours, theirs in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert on_grid(ours)


def test_the_optimizer_keeps_its_state_dict_and_its_scheduler():
    plain, rounded = (AdamW(network().parameters(), lr=1e-2) for _ in range(2))
    keep_rounded(rounded, "nearest")
    scheduler = LambdaLR(rounded, lambda epoch: 0.5**epoch)
    assert rounded.state_dict().keys() == plain.state_dict().keys()
    rounded.step()
    scheduler.step()
    assert rounded.param_groups[0]["lr"] == 5e-3


def test_other_dtypes_are_refused():
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"^--model\.weight_rounding nearest needs float32"):
        keep_rounded(SGD([weight], lr=1.0), "nearest")


def two_ranks(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    values = torch.full((8, 64), 1 + 2.0**-8)  # both shards hold the same numbers

    def rounded(placement):
        tensor = distribute_tensor(values.clone(), mesh, [placement])
        round_weights([tensor], "stochastic", Counted())
        return tensor

    whole = rounded(Shard(0)).full_tensor()
    assert on_grid(whole) and not on_grid(values)
    assert not torch.equal(whole[:4], whole[4:]), "shards must not draw the same numbers"
    copies = [torch.empty(8, 64) for _ in range(2)]
    dist.all_gather(copies, rounded(Replicate()).to_local())
    assert torch.equal(*copies), "replicas must stay equal"
    dist.destroy_process_group()


def test_shards_draw_different_numbers_and_replicas_the_same(tmp_path):
    torch.multiprocessing.spawn(two_ranks, (str(tmp_path / "store"),), nprocs=2, daemon=True)
