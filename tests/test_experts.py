"""Experts that share a tensor are matrices each, for the callback, `rlsgd analyze` and Muon."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import Muon

from rlsgd.analysis.checkpoint_files import Opened
from rlsgd.analysis.comparison import Comparison
from rlsgd.analysis.measures import Measures
from rlsgd.callbacks.effective_rank import EffectiveRank
from rlsgd.core.checkpoints import write_tensors
from rlsgd.optimizers.muon import MuonWithAdamW
from rlsgd.optimizers.roles import mark_roles
from tests.helpers.architectures import tiny_model


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral", "gpt-oss", "granite-moe", "deepseek-v3"])
def test_the_callback_measures_what_analyze_measures_on_the_export(tmp_path: Path, name: str):
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "base")
    initial = write_tensors(model.named_parameters(), tmp_path / "start")
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # of rank 3 in every matrix
            *batch, rows, columns = parameter.shape if parameter.ndim > 1 else (1, *parameter.shape)
            left = torch.randn(*batch, rows, 3, generator=draw)
            update = left @ torch.randn(*batch, 3, columns, generator=draw)
            parameter.add_(1e-2 * update.reshape(parameter.shape))
    model.save_pretrained(tmp_path / "tuned")
    callback = EffectiveRank()
    callback.initial = initial
    module: Any = SimpleNamespace(policy=model)
    ranks = callback.ranks(module)
    comparison = Comparison(
        Opened.open(str(tmp_path / "base"), [str(tmp_path / "tuned")]), Measures()
    )
    tensors = comparison.run()["tuned"][0]["tensors"]
    keys = ("effective_rank", "effective_rank_percent", "stable_rank")
    found = {part: [rank[key] for key in keys] for part, rank in ranks.items()}
    expected = {
        part: [measured[key] for key in keys]
        for part, measured in tensors.items()
        if "effective_rank" in measured
    }
    assert found == expected
    experts = [part for part in found if "experts" in part or "_linear" in part]
    assert len(experts) >= 4 * 2
    weights = sum(measured["weights"] for part, measured in tensors.items() if part in expected)
    assert weights / sum(p.numel() for p in model.parameters()) == pytest.approx(
        callback.covers(module), abs=1e-12
    )


def test_muon_steps_every_expert_as_a_matrix():
    model = tiny_model("qwen3-moe")
    mark_roles(model)
    experts = model.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
    expected = [torch.nn.Parameter(matrix.clone()) for matrix in experts.detach()]
    ours = MuonWithAdamW(model.parameters(), lr=0.1)
    options: Any = {"lr": 0.1, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    theirs = Muon(expected, momentum=0.95, nesterov=True, **options)
    draw = torch.Generator().manual_seed(1)
    for _ in range(2):
        experts.grad = torch.randn(experts.shape, generator=draw)
        for parameter, gradient in zip(expected, experts.grad, strict=True):
            parameter.grad = gradient.clone()
        ours.step()
        theirs.step()
    assert torch.equal(experts, torch.stack(list(expected)))
