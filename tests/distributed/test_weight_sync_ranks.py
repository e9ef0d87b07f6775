"""Weights that two FSDP2 processes send to engines: every rank to its own, or to one server.

The engine here is a folder that updates are applied to, since starting two of vLLM's takes long.
That a vLLM engine does the same with an update is shown in tests/rollout/test_vllm_sampler.py.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlsgd.core.distributed import full_parameters, process_number
from rlsgd.rollout import VLLMSampler
from rlsgd.rollout.vllm.weight_sync import apply_update_, read_update, update_file
from tests.distributed.fits import FixedSampler, fit, on_two_ranks

EPOCHS = 3


class FolderEngine:
    """Holds its weights, their version and who sent them in files, as a server for all ranks."""

    def __init__(self, folder):
        folder.mkdir(exist_ok=True)
        self.weights, self.log = folder / "weights.safetensors", folder / "log.txt"

    def version(self):
        return self.log.read_text().split()[-1] if self.log.exists() else "default"

    def receive(self, update, version):
        weights = {} if update.is_whole else load_file(self.weights)
        with update_file(update) as path:
            apply_update_(weights, read_update(path))
        save_file(weights, self.weights)
        with self.log.open("a") as log:
            log.write(f"{process_number()[0]} {version}\n")


class SyncedSampler(FixedSampler):
    """Fixed completions, after an engine was sent the policy and was found to hold it."""

    def __init__(self, folder, rank, server):
        self.engine = FolderEngine(folder / ("server" if server else str(rank)))
        self.vllm = VLLMSampler(server=server, dtype="bfloat16")

    def sample(self, policy, prompt_ids, **given):
        metrics = self.vllm.push(policy, self.engine)
        served = load_file(self.engine.weights)
        for name, weight in full_parameters(policy):
            assert torch.equal(served.pop(name), weight.to(torch.bfloat16)), name
        assert not served
        rollouts = super().sample(policy, prompt_ids, **given)
        rollouts.metrics = metrics
        return rollouts


def both(rank, model, folder):
    for server in (None, "http://nowhere"):
        case = folder / ("one_server" if server else "own_engines")
        case.mkdir(exist_ok=True)
        options = {"sampler": SyncedSampler(case, rank, server)}
        _, _, result = fit("grpo", model, case, ranks=2, module_options=options)
        if rank == 0:
            torch.save(result["metrics"], case / "metrics.pt")


@pytest.fixture(scope="module")
def folder(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sync")
    on_two_ranks(both, tiny_llama, folder)
    return folder


def senders(log: Path):
    ranks, versions = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
    assert [version.split("-")[1] for version in versions] == [str(i + 1) for i in range(EPOCHS)]
    return ranks


def test_every_rank_sends_to_its_own_engine(folder):
    for rank in "01":
        assert senders(folder / "own_engines" / rank / "log.txt") == (rank,) * EPOCHS


def test_one_server_is_sent_each_update_once(folder):
    assert senders(folder / "one_server" / "server" / "log.txt") == ("0",) * EPOCHS


@pytest.mark.parametrize("case", ["own_engines", "one_server"])
def test_bytes_are_those_of_one_engine(case, folder):
    metrics = torch.load(folder / case / "metrics.pt")
    served = load_file(next((folder / case).glob("*/weights.safetensors")))
    dense = sum(weight.nbytes for weight in served.values())
    assert [m["sync/dense_bytes"] for m in metrics] == [dense] * EPOCHS
    assert metrics[0]["sync/bytes"] == dense
    assert all(0 < m["sync/bytes"] < dense for m in metrics[1:])
    assert [m["sampler/weight_version"] for m in metrics] == [1, 2, 3]
