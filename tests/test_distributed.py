import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from rlsgd.core.distributed import derived_seed, full_parameters, gathered, global_sum

SEED = 4469640723056124473  # derived_seed(0, "rollout", 3, 1), for all time


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def two_ranks(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    value = torch.tensor([1.0 + rank, 10.0])
    assert global_sum(value).tolist() == [3.0, 20.0]
    assert value.tolist() == [1.0 + rank, 10.0], "the input must stay this rank's own"
    assert gathered([f"{rank}a", f"{rank}b"][: 2 - rank]) == ["0a", "0b", "1a"]
    torch.manual_seed(0)
    whole = dict(Tied().named_parameters())
    torch.manual_seed(0)
    sharded = fully_shard(Tied())
    assert next(sharded.parameters()).to_local().shape[0] == 3 - rank, "5 rows on 2 ranks: 3 + 2"
    parts = dict(full_parameters(sharded))
    assert parts.keys() == whole.keys() == {"embedding.weight", "norm.weight", "norm.bias"}
    for name, parameter in whole.items():
        assert torch.equal(parts[name], parameter), name
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path):
    torch.multiprocessing.spawn(two_ranks, (str(tmp_path / "store"),), nprocs=2, daemon=True)


def test_without_a_process_group_the_collectives_are_the_identity():
    value = torch.tensor([1.5, -2.0])
    assert global_sum(value) is value
    assert gathered([1, 2]) == [1, 2]


def test_full_parameters_gives_a_tied_weight_once_without_copying():
    module = Tied()
    parameters = dict(full_parameters(module))
    assert list(parameters) == ["embedding.weight", "norm.weight", "norm.bias"]
    assert parameters["embedding.weight"].data_ptr() == module.head.weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in parameters.values())


def test_derived_seed_is_the_head_of_a_sha256():
    expected = int(hashlib.sha256(b"0/rollout/3/1").hexdigest()[:16], 16) // 2
    assert derived_seed(0, "rollout", 3, 1) == expected == SEED
    assert 0 <= SEED < 2**63


@pytest.mark.parametrize(
    "other",
    [(1, "rollout", 3, 1), (0, "evaluate", 3, 1), (0, "rollout", 4, 1), (0, "rollout", 3, 0)],
    ids=["run", "purpose", "epoch", "rank"],
)
def test_derived_seed_changes_with_every_part(other: tuple):
    assert derived_seed(*other) != derived_seed(0, "rollout", 3, 1)
    assert derived_seed(0, "x", 11) != derived_seed(0, "x", 1, 1) != derived_seed(0, "x1", 1)


def test_derived_seed_is_the_same_in_another_process():
    code = (
        "from rlsgd.core.distributed import derived_seed; print(derived_seed(0, 'rollout', 3, 1))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(printed.stdout) == SEED
