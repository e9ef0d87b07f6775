"""What is sent to an engine: exactly what changed, in the smaller of two forms, to the last bit."""

import pytest
import torch

from rlsgd.rollout.vllm.weight_sync import WeightSync, apply_update_, read_update, write_update

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "body": torch.randn(300, 40, generator=generator),
        "head": torch.randn(64, 40, generator=generator),
        "norm": torch.randn(40, generator=generator),
    }


def sent_through_a_file(update, folder):
    write_update(update, folder / "update.safetensors")
    return read_update(folder / "update.safetensors")


def same_bits(left, right):
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype
        and torch.equal(left[n].view(torch.uint8), right[n].view(torch.uint8))
        for n in left
    )


def test_the_first_update_is_the_whole_model():
    update = WeightSync(torch.bfloat16).update(model().items())
    weights = 300 * 40 + 64 * 40 + 40
    assert update.is_whole and not update.patches and update.nbytes == 2 * weights
    assert update.metrics() == {
        "sync/bytes": 2 * weights,
        "sync/dense_bytes": 2 * weights,
        "sync/changed_share": 1.0,
    }


def test_only_what_changed_is_sent():
    weights, sync = model(), WeightSync(torch.float32)
    sync.update(weights.items())
    weights["body"][0, 3] = 5.0
    weights["body"][2, 0] = -0.0
    update = sync.update(weights.items())
    assert not update.tensors and not update.is_whole
    assert set(update.patches) == {"body"} and update.shapes == {"body": [300, 40]}
    # positions 3 and 80 as the gaps 3 and 76 of one byte each, and two values of four bytes
    assert update.patches["body"].positions.tolist() == [3, 76]
    assert update.nbytes == 2 * 1 + 2 * 4
    assert update.metrics()["sync/changed_share"] == 2 / (300 * 40 + 64 * 40 + 40)
    assert sync.update(weights.items()).is_empty


def test_a_change_below_the_dtype_of_the_engine_is_not_sent_until_it_shows():
    """1 + 2^-9 rounds to 1 in bfloat16; after four such steps 1 + 2^-7 is representable."""
    weight, sync = torch.ones(16, 16), WeightSync(torch.bfloat16)
    sync.update([("w", weight)])
    for step in range(1, 5):
        weight[3, 3] += 2.0**-9
        update = sync.update([("w", weight)])
        # 1 + 3 * 2^-9 lies nearer to 1 + 2^-7, which the fourth step reaches
        assert update.num_changed == (1 if step == 3 else 0)


def test_a_tensor_of_which_most_changed_goes_whole_and_the_others_do_not():
    weights, sync = model(), WeightSync(torch.float32)
    sync.update(weights.items())
    weights["head"] += 1.0
    weights["body"][7] += 1.0
    update = sync.update(weights.items())
    assert set(update.tensors) == {"head"} and set(update.patches) == {"body"}
    assert update.nbytes < update.dense_bytes and not update.is_whole
    assert update.num_changed == 64 * 40 + 40


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 1024])
def test_up_to_half_of_a_tensor_is_a_patch_and_always_smaller(size, dtype):
    for changed in {1, max(1, size // 2), size // 2 + 1}:
        weight, sync = torch.zeros(size), WeightSync(dtype)
        sync.update([("w", weight)])
        weight[:changed] = 1.0
        update = sync.update([("w", weight)])
        assert bool(update.tensors) == (2 * changed > size)
        assert (update.nbytes < update.dense_bytes) == bool(update.patches)
        assert sync.update([("w", weight)]).is_empty


@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_give_an_engine_the_bits_that_a_dense_transfer_would(dtype, tmp_path):
    weights, sync, engine = model(), WeightSync(dtype), {}
    generator = torch.Generator().manual_seed(1)
    for step in range(5):
        for scale, weight in zip((1e-3, 1e-1, 1.0), weights.values(), strict=True):
            moved = torch.rand(weight.shape, generator=generator) < 0.1 * (step + 1)
            noise = torch.randn(weight.shape, generator=generator)
            weight[moved] += (scale * noise)[moved]
        weights["norm"][step] = [float("inf"), -0.0, 0.0, 1e-40, -1e-45][step]
        update = sync.update(weights.items())
        assert step == 0 or update.patches
        apply_update_(engine, sent_through_a_file(update, tmp_path))
        assert same_bits(engine, {name: weight.to(dtype) for name, weight in weights.items()})


def test_what_was_sent_is_a_copy_of_its_own():
    """The policy trains in place; an alias would never see a change."""
    weights, sync = model(), WeightSync(torch.float32)
    sync.update(weights.items())
    weights["head"].mul_(2.0)
    assert sync.update(weights.items()).num_changed == 64 * 40


def test_forgetting_sends_everything_again():
    weights, sync = model(), WeightSync(torch.float32)
    sync.update(weights.items())
    sync.forget()
    assert sync.update(weights.items()).is_whole


def test_dense_updates_keep_no_copy():
    weights, sync = model(), WeightSync(torch.float32, sparse=False)
    for _ in range(2):
        assert sync.update(weights.items()).is_whole
        assert sync.sent == {}
