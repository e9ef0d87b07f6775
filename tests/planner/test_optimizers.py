"""States found by a step on small parameters, against those of a step on a whole model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlsgd.optimizers.roles import mark_roles
from rlsgd.planner.architecture import load_architecture
from rlsgd.planner.optimizers import class_and_arguments, measure_optimizer
from tests.planner.measuring import OPTIMIZERS

CASES = {
    **{name: (path, arguments) for name, (path, arguments) in OPTIMIZERS.items()},
    "AdamW-amsgrad": ("torch.optim.AdamW", {"amsgrad": True}),
    "RMSprop-all": ("torch.optim.RMSprop", {"momentum": 0.9, "centered": True}),
    "SignSGD-momentum": ("rlsgd.optimizers.SignSGD", {"momentum": 0.9}),
    "Adagrad": ("torch.optim.Adagrad", {}),
}


@pytest.mark.parametrize("item", [4, 2])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("folder_name", ["tiny_llama", "tiny_llama_untied"])
def test_states_of_a_whole_model(
    folder_name: str, name: str, item: int, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(folder_name)
    spec = json.dumps(dict(zip(("class_path", "init_args"), CASES[name], strict=True)))
    dtype = torch.float32 if item == 4 else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    mark_roles(model)
    kind, arguments = class_and_arguments(spec)
    optimizer = kind(model.parameters(), **{"lr": 1e-3, **arguments})
    gradients: list[int] = []  # bytes of those that exist whenever one more is there

    def count(_: Tensor) -> None:
        gradients.append(sum(p.grad.nbytes for p in model.parameters() if p.grad is not None))

    for parameter in model.parameters():  # before the optimizer's own hooks
        parameter.register_post_accumulate_grad_hook(count)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(input_ids=torch.arange(8).view(1, 8)).logits.float().logsumexp(-1).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    states = [
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    found, architecture = measure_optimizer(spec, item), load_architecture(str(folder))
    assert found.state_bytes(architecture) == sum(states)
    assert found.gradient_bytes(architecture) == max(gradients)
    assert found.fused == (name == "FusedBackwardSGD")


def test_numbers_for_each_weight_by_hand():
    counter = 4
    adamw = measure_optimizer("AdamW", 4)
    assert {(s.per_entry, s.fixed) for s in adamw.states.values()} == {(8, counter)}
    muon = measure_optimizer("MuonWithAdamW", 4).states
    assert (muon["matrix"].per_entry, muon["matrix"].fixed) == (4, 0)
    for kind in ("embedding", "head", "vector"):
        assert (muon[kind].per_entry, muon[kind].fixed) == (8, counter)


def test_workspace_on_a_gpu_by_hand(tiny_llama: Path):
    """Lists of new tensors: AdamW's and RMSprop's roots; on a CPU those of one tensor at a time."""
    model = load_architecture(str(tiny_llama))
    embedding = largest = 64 * 32
    sizes = {"AdamW": (1, 2), "RMSprop": (1, 1)}
    for name, (together, in_turn) in sizes.items():
        optimizer = measure_optimizer(name, 4)
        assert optimizer.workspace_bytes(model, 1, one_by_one=False) == 4 * model.num_weights
        assert optimizer.workspace_bytes(model, 1, one_by_one=True) == 4 * in_turn * largest
        assert together == 1
    halved = measure_optimizer("AdamW", 4).workspace_bytes(model, 2, one_by_one=False)
    assert halved == 4 * model.num_weights // 2
    for one_by_one in (True, False):
        for name, entries in (("SGD", 0), ("SignSGD", largest), ("SGDLL", embedding)):
            found = measure_optimizer(name, 4).workspace_bytes(model, 1, one_by_one=one_by_one)
            assert found == 4 * entries


def test_an_optimizer_whose_workspace_is_not_known():
    found = measure_optimizer("Adagrad", 4)
    assert not found.has_known_workspace
    assert measure_optimizer("torch.optim.SGD", 4).has_known_workspace


@pytest.mark.parametrize(
    ("spec", "fragment"),
    [
        ("torch.optim.Nothing", "no such class; write a class path such as torch.optim.AdamW"),
        ("no.such.package.Optimizer", "no such class"),
        ("Nothing", "no such class"),
        ("{not json", "not a JSON object with class_path and init_args"),
        ('{"init_args": {}}', "not a JSON object with class_path and init_args"),
        ('{"class_path": "SGD", "init_args": {"momentum": -1}}', "SGD cannot be used"),
        ('{"class_path": "SGD", "init_args": {"nothing": 1}}', "SGD cannot be used"),
        ("torch.optim.SparseAdam", "SparseAdam cannot be used"),
    ],
)
def test_what_is_no_optimizer(spec: str, fragment: str):
    with pytest.raises(ValueError, match=r"^--optimizer") as error:
        measure_optimizer(spec, 4)
    assert fragment in str(error.value)
