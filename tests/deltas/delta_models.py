"""Small checkpoints to pack, and how to compare two of them bit for bit."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlsgd.core.checkpoints import LazyTensors
from rlsgd.deltas.apply import apply
from rlsgd.deltas.pack import pack
from rlsgd.deltas.reader import Delta


def saved(tensors: Mapping[str, Tensor], path: Path) -> LazyTensors:
    save_file({name: value.clone() for name, value in tensors.items()}, path)
    return LazyTensors.open(path)


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def assert_same(found: LazyTensors, expected: Mapping[str, Tensor]) -> None:
    """Names, dtypes, shapes and bits."""
    assert found.files.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert raw(found[name]) == raw(value), name


def there_and_back(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], folder: Path
) -> tuple[LazyTensors, Delta]:
    """The checkpoint that base and delta give, and the delta."""
    start = saved(base, folder / "base.safetensors")
    pack(start, saved(tuned, folder / "tuned.safetensors"), folder / "delta.safetensors")
    delta = Delta(folder / "delta.safetensors")
    apply(start, [delta], folder / "out")
    return LazyTensors.open(folder / "out"), delta


def example() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Base and tuned, with a tensor of every kind of entry."""
    base = {
        "same": torch.arange(6.0).reshape(2, 3),
        "patched": torch.arange(100.0),
        "replaced": torch.arange(4.0),
        "widened": torch.arange(40.0).bfloat16(),
        "reshaped": torch.zeros(2, 2),
        "counter": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "gone": torch.ones(3),
    }
    tuned = {name: value.clone() for name, value in base.items() if name != "gone"}
    tuned["patched"][[3, 77]] = torch.tensor([-0.0, torch.nan])
    tuned["replaced"] += 1
    tuned["widened"] = tuned["widened"].float()
    tuned["widened"][5] += 1e-6
    tuned["reshaped"] = torch.zeros(4)
    tuned["counter"] += 1
    tuned["new"] = torch.tensor([1.5])
    tuned["tied"] = tuned["patched"].clone()
    return base, tuned
