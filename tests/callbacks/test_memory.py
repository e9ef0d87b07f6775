from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, RMSprop

from rlsgd.callbacks import Memory
from rlsgd.callbacks.memory import closed_form_bytes
from rlsgd.optimizers import SGDLL, MuonWithAdamW, OptimizerContainer, SignSGD
from rlsgd.optimizers.roles import mark_roles
from tests.callbacks.callback_stub import PolicyStub, loader, logged, make_trainer, values

# by hand: embedding 64 x 32; a layer: q and o 32 x 32, k and v 16 x 32, three of 64 x 32, two norms
WEIGHTS = 64 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32) + 32
TENSORS = 1 + 2 * 9 + 1
FROZEN = {"model.layers.0.mlp.up_proj.weight": 64 * 32, "model.norm.weight": 32}

OPTIMIZERS = {  # class, arguments, numbers kept for each weight, step counters for each tensor
    "sgd": (SGD, {}, 0, 0),
    "sgd-momentum": (SGD, {"momentum": 0.9}, 1, 0),
    "rmsprop": (RMSprop, {}, 1, 1),
    "rmsprop-all": (RMSprop, {"momentum": 0.9, "centered": True}, 3, 1),
    "adamw": (AdamW, {}, 2, 1),
    "adamw-amsgrad": (AdamW, {"amsgrad": True}, 3, 1),
    "sgd-ll": (SGDLL, {"head_row_clip": None}, 1, 0),
    "sign-sgd": (SignSGD, {}, 0, 0),
    "sign-sgd-momentum": (SignSGD, {"momentum": 0.9}, 1, 0),
}


def measure(folder: Path, tmp_path: Path, optimizer: Callable, **settings: Any) -> dict[str, float]:
    module = PolicyStub(folder, lambda policy: optimizer(policy.parameters(), lr=1e-3), **settings)
    make_trainer(tmp_path, [Memory()], epochs=1).fit(module, loader(2))
    names = ("parameter", "frozen", "gradient", "optimizer_state", "closed_form", "peak_rss")
    found = {name: values(tmp_path, f"memory/{name}_bytes") for name in names}
    return {name: numbers[0] for name, numbers in found.items() if numbers}


@pytest.mark.parametrize("case", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_bytes_by_hand(tiny_llama: Path, tmp_path: Path, case: tuple):
    kind, arguments, states, counters = case
    measured = measure(tiny_llama, tmp_path, lambda p, lr: kind(p, lr=lr, **arguments))
    assert measured.pop("peak_rss") > 50e6, "in bytes: torch alone takes more"
    assert measured == {
        "parameter": 4 * WEIGHTS,  # the tied embedding once
        "frozen": 0,
        "gradient": 4 * WEIGHTS,
        "optimizer_state": 4 * (states * WEIGHTS + counters * TENSORS),
        "closed_form": 4 * (1 + states) * WEIGHTS,
    }


def test_muon_keeps_one_number_for_a_matrix_and_adamw_two_for_the_rest(
    tiny_llama: Path, tmp_path: Path
):
    def make(policy: Any) -> MuonWithAdamW:
        mark_roles(policy)
        return MuonWithAdamW(policy.parameters(), lr=1e-3)

    make_trainer(tmp_path, [Memory()], epochs=1).fit(PolicyStub(tiny_llama, make), loader(2))
    rest, tensors = 64 * 32 + 5 * 32, 1 + 5  # the embedding and five norms
    [state] = values(tmp_path, "memory/optimizer_state_bytes")
    assert state == 4 * ((WEIGHTS - rest) + 2 * rest + tensors)
    [closed_form] = values(tmp_path, "memory/closed_form_bytes")
    assert closed_form == 8 * (WEIGHTS - rest) + 12 * rest


def test_an_untied_head_counts_for_itself(tiny_llama_untied: Path, tmp_path: Path):
    measured = measure(tiny_llama_untied, tmp_path, SGD)
    assert measured["parameter"] == 4 * (WEIGHTS + 64 * 32)


def test_frozen_weights_are_counted_apart(tiny_llama: Path, tmp_path: Path):
    measured = measure(tiny_llama, tmp_path, AdamW, frozen=list(FROZEN))
    trained = WEIGHTS - sum(FROZEN.values())
    assert measured["frozen"] == 4 * sum(FROZEN.values())
    assert measured["parameter"] == measured["gradient"] == 4 * trained
    assert measured["optimizer_state"] == 4 * (2 * trained + TENSORS - len(FROZEN))
    assert measured["closed_form"] == 12 * trained


def test_bfloat16_weights_take_two_bytes(tiny_llama: Path, tmp_path: Path):
    measured = measure(tiny_llama, tmp_path, SGD, dtype=torch.bfloat16)
    assert measured["parameter"] == measured["gradient"] == 2 * WEIGHTS


def test_an_unknown_optimizer_has_no_closed_form(tiny_llama: Path, tmp_path: Path):
    assert "closed_form" not in measure(tiny_llama, tmp_path, torch.optim.Adagrad)


def test_closed_form_adds_up_over_groups_with_their_own_settings():
    first, second = torch.zeros(10, requires_grad=True), torch.zeros(3, requires_grad=True)
    groups: list[Any] = [{"params": [first]}, {"params": [second], "momentum": 0.9}]
    assert closed_form_bytes(SGD(groups, lr=1.0)) == 4 * 10 + 8 * 3


def test_closed_form_adds_up_over_the_optimizers_of_a_container():
    first, second = torch.zeros(10, requires_grad=True), torch.zeros(3, requires_grad=True)
    adam = AdamW([first])
    assert closed_form_bytes(OptimizerContainer([adam, SGD([second], lr=1.0)])) == 12 * 10 + 4 * 3
    unknown = torch.optim.Adagrad([second])
    assert closed_form_bytes(OptimizerContainer([adam, unknown])) is None


def test_byte_counts_are_logged_exactly(tiny_llama: Path, tmp_path: Path):
    measure(tiny_llama, tmp_path, SGD)
    text = (tmp_path / "metrics.csv").read_text()
    assert f",{4 * WEIGHTS}," in text, "a whole number, not rounded to float32"
    assert [(epoch, step) for epoch, step, _ in logged(tmp_path, "memory/frozen_bytes")] == [(0, 2)]
