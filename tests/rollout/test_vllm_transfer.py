"""The GPU's paths, as far as a CPU can run them: vLLM's own loader and its own checks."""

import pytest
import torch

from rlsgd.rollout.vllm.transfer import LLMClient, _source, sparse_patches
from rlsgd.rollout.vllm.weight_sync import WeightSync
from rlsgd.rollout.vllm.worker import patch_in_place

pytestmark = pytest.mark.vllm


class FusedModel(torch.nn.Module):
    """Keeps two checkpoint tensors in one parameter, as vLLM keeps gate and up projections."""

    def __init__(self, dtype):
        super().__init__()
        self.gate_up = torch.nn.Parameter(torch.zeros(16, 8, dtype=dtype), requires_grad=False)
        self.norm = torch.nn.Parameter(torch.zeros(8, dtype=dtype), requires_grad=False)

    def load_weights(self, pairs):
        places = {"gate": self.gate_up[:8], "up": self.gate_up[8:], "norm": self.norm}
        pairs = list(pairs)
        for name, tensor in pairs:
            places[name].data.copy_(tensor)
        return {name for name, _ in pairs}


def checkpoint():
    generator = torch.Generator().manual_seed(0)
    shapes = {"gate": (8, 8), "up": (8, 8), "norm": (8,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def changed(weights):
    """An update with both forms: norm whole, gate and up as patches."""
    weights["gate"][2, 3] = -0.0
    weights["up"][7, 7] = 1e-30
    weights["up"][0, :3] += 1.0
    weights["norm"] *= 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_land_in_place_in_fused_parameters(dtype):
    weights, sync, model = checkpoint(), WeightSync(dtype), FusedModel(dtype)
    model.load_weights(weights.items())
    sync.update(weights.items())
    storage = model.gate_up.data_ptr()
    changed(weights)
    update = sync.update(weights.items())
    assert set(update.tensors) == {"norm"} and set(update.patches) == {"gate", "up"}
    patch_in_place(model, update)
    assert model.gate_up.data_ptr() == storage
    expected = torch.cat([weights["gate"], weights["up"]]).to(dtype)
    assert torch.equal(model.gate_up.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(model.norm, weights["norm"].to(dtype))


def test_vllm_takes_our_sparse_patches():
    from vllm.distributed.weight_transfer.sparse_nccl_engine import (
        SparseNCCLTrainerWeightTransferEngine,
        SparseNCCLWeightTransferUpdateInfo,
    )

    weights, sync = checkpoint(), WeightSync(torch.bfloat16)
    sync.update(weights.items())
    changed(weights)
    patches = sparse_patches(sync.update(weights.items()), device="cpu")
    for patch in patches:
        SparseNCCLTrainerWeightTransferEngine._validate_patch(patch)
    found = {p.name: (p.indices.tolist(), p.full_shape) for p in patches}
    assert found == {
        "norm": (list(range(8)), (8,)),
        "gate": ([19], (8, 8)),
        "up": ([0, 1, 2, 63], (8, 8)),
    }
    for patch in patches:
        now = weights[patch.name].to(torch.bfloat16).flatten()[patch.indices.long()]
        assert torch.equal(patch.values, now)
    SparseNCCLWeightTransferUpdateInfo(
        names=[p.name for p in patches],
        dtype_names=["bfloat16"] * 3,
        shapes=[list(p.full_shape) for p in patches],
        num_updates_list=[len(p.indices) for p in patches],
    )


def test_a_dense_transfer_names_every_weight():
    weights = checkpoint()
    update = WeightSync(torch.bfloat16, sparse=False).update(weights.items())
    meta = _source(update).metadata()
    assert [(m.name, m.dtype, m.shape) for m in meta] == [
        (name, torch.bfloat16, tuple(weight.shape)) for name, weight in weights.items()
    ]


def test_the_client_speaks_to_the_methods_that_vllms_engine_has():
    """vLLM's own `LLM` methods, down to the calls that they make of the workers."""
    from vllm.entrypoints.rl.offline import RLOfflineMixin

    calls = []

    class Engine:
        def collective_rpc(self, name, kwargs=None):
            calls.append((name, kwargs or {}))

    class LLM(RLOfflineMixin):
        llm_engine = Engine()

    client = LLMClient(LLM())
    client.init_weight_transfer_engine({"packed": True})
    client.start_weight_update()
    client.update_weights({"names": ["w"]})
    client.finish_weight_update()
    assert calls == [
        ("init_weight_transfer_engine", {"init_info": {"packed": True}}),
        ("start_weight_update", {}),
        ("update_weights", {"update_info": {"names": ["w"]}}),
        ("finish_weight_update", {}),
    ]
