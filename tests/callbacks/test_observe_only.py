"""Callbacks observe: what is trained does not depend on who is watching."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from transformers import PreTrainedModel

from rlsgd import callbacks
from tests.callbacks.callback_stub import PolicyStub, loader, make_trainer

EVERY = {name: getattr(callbacks, name) for name in callbacks.__all__}


def outcome(folder: Path, tmp_path: Path, watching: list[Callback]) -> tuple[dict, list]:
    """Final weights, and the state of every random number generator."""

    def momentum(policy: PreTrainedModel) -> torch.optim.Optimizer:
        return torch.optim.SGD(policy.parameters(), lr=0.05, momentum=0.9)

    seed_everything(7)
    module = PolicyStub(folder, momentum)
    trainer = make_trainer(tmp_path, watching, accumulate_grad_batches=2)
    trainer.fit(module, loader(4))
    assert trainer.global_step == 6
    weights = {name: value.clone() for name, value in module.policy.state_dict().items()}
    generators = [
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    ]
    return weights, generators


@pytest.mark.parametrize("names", [*([name] for name in EVERY), list(EVERY)], ids="-".join)
def test_weights_and_random_numbers_are_those_of_an_unwatched_run(
    names: list[str], tiny_llama: Path, tmp_path: Path
):
    plain_weights, plain_generators = outcome(tiny_llama, tmp_path / "plain", [])
    weights, generators = outcome(
        tiny_llama, tmp_path / "watched", [EVERY[name]() for name in names]
    )
    assert weights.keys() == plain_weights.keys()
    assert all(torch.equal(weights[name], plain_weights[name]) for name in weights)
    assert generators == plain_generators
    start = PolicyStub(tiny_llama, lambda p: torch.optim.SGD(p.parameters()))
    start.configure_model()
    moved = [not torch.equal(weights[n], w) for n, w in start.policy.state_dict().items()]
    assert all(moved), "something must have been trained"
