from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.callbacks import EffectiveRank
from rlsgd.cli.training import TrainingCLI
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.core.types import DivergedError
from rlsgd.functional.updates import effective_rank
from rlsgd.models.loading import EMBEDDED
from tests.callbacks.callback_stub import (
    Edit,
    PolicyStub,
    Scripted,
    events,
    jsonl,
    loader,
    make_trainer,
    values,
)

QUERY = "model.layers.0.self_attn.q_proj.weight"  # [32, 32]
UP = "model.layers.1.mlp.up_proj.weight"  # [64, 32]
NORM = "model.norm.weight"  # no matrix
MATRICES = 1 + 2 * 7  # the tied embedding, and seven in each of two layers


def train(folder: Path, edits: Sequence[Edit], tmp_path: Path, callback: EffectiveRank) -> None:
    """One optimizer step in each epoch."""
    trainer = make_trainer(tmp_path, [callback], epochs=len(edits))
    trainer.fit(PolicyStub(folder, lambda policy: Scripted(policy, edits)), loader(1))


def planted(shape: tuple[int, int], squared_singular_values: Sequence[float]) -> Tensor:
    """A matrix with exactly these squared singular values."""
    generator = torch.Generator().manual_seed(0)
    rank = len(squared_singular_values)
    left, right = (
        torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))[0]
        for size in shape
    )
    return (left * torch.tensor(squared_singular_values).sqrt() @ right.T).float()


def plant(policy: PreTrainedModel) -> None:
    # 0.60 + 0.395 of the energy are two singular values; the third holds the last 0.005
    policy.get_parameter(QUERY).add_(planted((32, 32), [6.0, 3.95, 0.05]))
    policy.get_parameter(UP).add_(planted((64, 32), [1.0] * 20))
    policy.get_parameter(NORM).add_(1.0)


def nothing(_policy: PreTrainedModel) -> None: ...


def test_planted_ranks_and_the_zero_update(tiny_llama: Path, tmp_path: Path):
    train(tiny_llama, [nothing, plant], tmp_path, EffectiveRank())
    before, after = jsonl(tmp_path / "effective_rank.jsonl")
    zero = {"effective_rank": 0, "effective_rank_percent": 0.0, "stable_rank": 0.0}
    assert len(before["tensors"]) == MATRICES and NORM not in before["tensors"]
    assert all(rank == zero for rank in before["tensors"].values())
    assert (before["epoch"], before["global_step"]) == (0, 1)
    ranks = after["tensors"]
    assert ranks.pop(QUERY) == {
        "effective_rank": 2,
        "effective_rank_percent": 100 * 2 / 32,
        "stable_rank": pytest.approx(10 / 6, rel=1e-5),
    }
    assert ranks.pop(UP) == {  # 99% of 20 equal values is 19.8 of them
        "effective_rank": 20,
        "effective_rank_percent": 100 * 20 / 32,
        "stable_rank": pytest.approx(20, rel=1e-5),
    }
    assert all(rank == zero for rank in ranks.values())
    assert values(tmp_path, "update/effective_rank") == pytest.approx([0, 22 / MATRICES])
    percent = values(tmp_path, "update/effective_rank_percent")
    assert percent == pytest.approx([0, 100 * 22 / 32 / MATRICES])
    stable = values(tmp_path, "update/stable_rank")
    assert stable == pytest.approx([0, (20 + 10 / 6) / MATRICES], rel=1e-5)
    kinds = "update_kind/{}/effective_rank_percent".format
    assert values(tmp_path, kinds("attention_q")) == pytest.approx([0, 100 * 2 / 32 / 2])
    assert values(tmp_path, kinds("mlp")) == pytest.approx([0, 100 * 20 / 32 / 6])
    assert values(tmp_path, kinds("embedding")) == [0, 0]
    images = events(tmp_path).Images("update/effective_rank_percent_by_layer")
    assert [image.step for image in images] == [2], "after the last epoch only"


# Of squares 16, 4 and 1 the first hold 0.7619, 0.9524 and all.
@pytest.mark.parametrize(
    ("energy", "rank"), [(0.76, 1), (0.77, 2), (0.952, 2), (0.953, 3), (1.0, 3)]
)
def test_the_energy_decides_the_rank(tiny_llama: Path, tmp_path: Path, energy: float, rank: int):
    def diagonal(policy: PreTrainedModel) -> None:
        policy.get_parameter(QUERY).add_(torch.diag(torch.tensor([4.0, 2.0, 1.0] + [0.0] * 29)))

    train(tiny_llama, [diagonal], tmp_path, EffectiveRank(energy=energy, heatmap=False))
    (record,) = jsonl(tmp_path / "effective_rank.jsonl")
    assert record["tensors"][QUERY]["effective_rank"] == rank
    assert events(tmp_path).Tags()["images"] == []


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_have_diverged(tiny_llama: Path, tmp_path: Path, bad: float):
    def break_down(policy: PreTrainedModel) -> None:
        policy.get_parameter(UP)[3, 4] = bad

    with pytest.raises(DivergedError, match=r"up_proj.* is no longer finite .* step 1\. .*--model"):
        train(tiny_llama, [break_down], tmp_path, EffectiveRank())


@pytest.mark.parametrize("energy", [0.0, 1.01])
def test_a_share_of_energy_is_a_share(energy: Any):
    with pytest.raises(ValueError, match=r"EffectiveRank\.energy"):
        EffectiveRank(energy=energy)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_ranks_of_a_real_update_are_those_of_the_svd(optimizer: str, tmp_path: Path, monkeypatch):
    config = Path("configs/grpo_embedded.yaml").absolute()
    monkeypatch.chdir(tmp_path)
    cli = TrainingCLI.run(
        [
            "fit",
            f"--config={config}",
            "--trainer.max_epochs=3",
            "--data.val_problems=4",
            "--data.prompts_per_epoch=8",
            f"--model.optimizer=torch.optim.{optimizer}",
            "--model.optimizer.lr=1e-3",
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    [log] = tmp_path.rglob("effective_rank.jsonl")
    found = jsonl(log)[-1]["tensors"]
    base = LazyTensors.open(EMBEDDED)
    weights = dict(cli.model.policy.named_parameters())
    assert len(found) == sum(w.ndim == 2 for w in weights.values()) == 1 + 3 * 7
    for name, rank in found.items():
        update = weights[name].detach().double() - base[name].double()
        assert update.any()
        direct = effective_rank(torch.linalg.svdvals(update).square())
        assert rank["effective_rank"] == direct >= 1


def test_sketched_matrices_have_bounds_in_the_place_of_ranks(tiny_llama: Path, tmp_path: Path):
    """All matrices are sketched whose shorter side is 32; keys and values have 16 columns."""
    callback = EffectiveRank(sketch_above=16, sketch_columns=8)
    train(tiny_llama, [plant], tmp_path, callback)
    (record,) = jsonl(tmp_path / "effective_rank.jsonl")
    ranks = record["tensors"]
    assert ranks[QUERY] == {
        "effective_rank_low": 2,
        "effective_rank_high": 2,
        "energy_outside_sketch": pytest.approx(0, abs=1e-6),
    }
    # 8 columns hold 8 of the 20 equal values
    assert 1 <= ranks[UP]["effective_rank_low"] <= 20 <= ranks[UP]["effective_rank_high"] <= 32
    assert ranks[UP]["energy_outside_sketch"] == pytest.approx(12 / 20, abs=0.01)
    zero = {"effective_rank": 0, "effective_rank_percent": 0.0, "stable_rank": 0.0}
    exact = {name for name, rank in ranks.items() if "effective_rank" in rank}
    assert exact == {n for n in ranks if "k_proj" in n or "v_proj" in n}
    assert all(
        ranks[name] == {**zero, "effective_rank_low": 0, "effective_rank_high": 0} for name in exact
    )
    low, high = (values(tmp_path, f"update/effective_rank_{end}") for end in ("low", "high"))
    assert low == [pytest.approx((2 + ranks[UP]["effective_rank_low"]) / MATRICES)]
    assert high == [pytest.approx((2 + ranks[UP]["effective_rank_high"]) / MATRICES)]
    assert "update/effective_rank," not in (tmp_path / "metrics.csv").read_text()
    kinds = "update_kind/{}/effective_rank_percent".format
    assert values(tmp_path, kinds("attention_k")) == [0]
    assert kinds("attention_q") not in (tmp_path / "metrics.csv").read_text()


@pytest.mark.parametrize("flag", ["sketch_above", "sketch_columns"])
def test_a_sketch_has_a_size(flag: str):
    settings: dict[str, Any] = {flag: 0}
    with pytest.raises(ValueError, match=rf"EffectiveRank\.{flag} must be at least 1"):
        EffectiveRank(**settings)
