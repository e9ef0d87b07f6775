"""Muon with AdamW: each part does what torch's own does to its parameters, and no other."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon
from transformers import AutoModelForCausalLM

from rlsgd.optimizers import MuonWithAdamW, OptimizerContainer
from rlsgd.optimizers.roles import mark_roles

SETTINGS = {"lr": 1e-2, "adamw_lr": 3e-3, "weight_decay": 0.1, "momentum": 0.8}


def model_of(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    mark_roles(model)
    return model


def train(model, optimizers, steps=3):
    for step in range(steps):
        tokens = torch.randint(2, 64, (2, 8), generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_llama_untied", "tiny_gpt2"])
def test_each_part_equals_torchs_own(fixture, request):
    """By names here, while ours goes by shapes and roles."""
    folder = request.getfixturevalue(fixture)
    joined, apart = model_of(folder), model_of(folder)
    of_layers = [
        p for n, p in apart.named_parameters() if (".layers." in n or ".h." in n) and p.ndim == 2
    ]
    layer_ids = {id(p) for p in of_layers}
    others = [p for p in apart.parameters() if id(p) not in layer_ids]
    adjust = {"weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    parts = [
        Muon(of_layers, lr=1e-2, momentum=0.8, **adjust),
        AdamW(others, lr=3e-3, weight_decay=0.1),
    ]
    train(apart, parts)
    train(joined, [MuonWithAdamW(joined.parameters(), **SETTINGS)])
    start = model_of(folder)
    for (name, ours), theirs in zip(joined.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert not torch.equal(ours, start.get_parameter(name)), name


def test_one_rate_serves_both_and_the_container_nests(tiny_llama, tmp_path):
    model = model_of(tiny_llama)
    critic = nn.Linear(2, 1)
    optimizer = MuonWithAdamW(model.parameters(), lr=1e-2)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-2]
    pair = OptimizerContainer([optimizer, AdamW(critic.parameters())])
    train(model, [pair])
    torch.save(pair.state_dict(), tmp_path / "pair.pt")
    other = model_of(tiny_llama)
    other.load_state_dict(model.state_dict())
    again = MuonWithAdamW(other.parameters(), lr=7.0)
    resumed = OptimizerContainer([again, AdamW(nn.Linear(2, 1).parameters())])
    resumed.load_state_dict(torch.load(tmp_path / "pair.pt"))
    train(model, [pair])
    train(other, [resumed])
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_vectors_and_single_rows_are_not_for_muon():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Linear(3, 1))
    mark_roles(model)
    muon, adamw = MuonWithAdamW(model.parameters(), lr=1e-2).optimizers
    assert [tuple(p.shape) for p in muon.param_groups[0]["params"]] == [(3, 4)]
    assert [tuple(p.shape) for p in adamw.param_groups[0]["params"]] == [(5, 4), (3,), (1, 3), (1,)]


def test_a_model_without_matrices_of_layers_is_refused():
    message = "^--model.optimizer MuonWithAdamW: 0 of 2 parameters are matrices of layers"
    with pytest.raises(ValueError, match=message):
        MuonWithAdamW(nn.Linear(3, 1).parameters(), lr=1e-2)
