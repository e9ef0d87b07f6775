import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsgd.callbacks import UpdateSparsity
from tests.callbacks.callback_stub import (
    Edit,
    PolicyStub,
    Scripted,
    events,
    jsonl,
    loader,
    logged,
    make_trainer,
    values,
)

QUERY = "model.layers.0.self_attn.q_proj.weight"  # [32, 32]
UP = "model.layers.1.mlp.up_proj.weight"  # [64, 32]
NORM = "model.norm.weight"  # [32]
EMBEDDING = "model.embed_tokens.weight"  # [64, 32], tied to the head
# by hand: embedding 64 x 32; a layer: q and o 32 x 32, k and v 16 x 32, three of 64 x 32, two norms
NUMEL = 64 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32) + 32


def stub(folder: Path, edits: Sequence[Edit], **settings: Any) -> PolicyStub:
    return PolicyStub(folder, lambda policy: Scripted(policy, edits), **settings)


def train(folder: Path, edits: Sequence[Edit], tmp_path: Path, callback: UpdateSparsity, **kw: Any):
    """Two optimizer steps in each epoch."""
    trainer = make_trainer(tmp_path, [callback], epochs=len(edits) // 2)
    trainer.fit(stub(folder, edits, **kw), loader(2))
    return trainer


def add(name: str, index: Any, amount: float) -> Edit:
    def edit(policy: PreTrainedModel) -> None:
        policy.get_parameter(name).view(-1)[index] += amount

    return edit


def assign(name: str, index: Any, new: Tensor) -> Edit:
    def edit(policy: PreTrainedModel) -> None:
        policy.get_parameter(name).view(-1)[index] = new

    return edit


def nothing(_policy: PreTrainedModel) -> None: ...


def shares(*changed: int, of: int = NUMEL) -> Any:
    return pytest.approx([1 - count / of for count in changed], abs=1e-12)


@pytest.fixture
def script(tiny_llama: Path) -> list[Edit]:
    """Six steps whose every number is known beforehand."""
    initial = AutoModelForCausalLM.from_pretrained(tiny_llama)
    query, up = (initial.get_parameter(name).detach().view(-1) for name in (QUERY, UP))
    rounded = query.bfloat16().float()
    invisible = ((rounded - query).abs() > 2e-4).nonzero()[:, 0]
    invisible = invisible[invisible >= 5][:7]  # as bfloat16 they will be what they were
    tiny = ((up + 5e-6).bfloat16() == up.bfloat16()).nonzero()[:4, 0]
    assert (len(invisible), len(tiny)) == (7, 4)
    return [
        add(QUERY, slice(0, 5), 1.0),
        add(NORM, slice(29, 32), 0.5),
        assign(QUERY, invisible, rounded[invisible]),
        add(UP, tiny, 5e-6),
        assign(QUERY, slice(0, 5), query[:5]),  # as if nothing had been
        add(EMBEDDING, slice(0, 2), 1.0),
    ]


def test_every_number_of_known_changes(tiny_llama: Path, script: list[Edit], tmp_path: Path):
    frozen = "model.layers.1.mlp.gate_proj.weight"
    train(tiny_llama, script, tmp_path, UpdateSparsity(), frozen=[frozen])
    # changed since the start: 5 + 3, then 7 and 4 more, then 5 fewer and 2 more
    assert values(tmp_path, "update/unchanged_fp32") == shares(8, 19, 16)
    assert values(tmp_path, "update/unchanged_bf16") == shares(8, 8, 5)
    for tolerance in ("1e-8", "1e-7", "1e-6"):
        assert values(tmp_path, f"update/within_{tolerance}") == shares(8, 19, 16)
    for tolerance in ("1e-5", "1e-4"):
        assert values(tmp_path, f"update/within_{tolerance}") == shares(8, 15, 12)
    # by the last step of each epoch alone
    assert values(tmp_path, "update_step/unchanged_fp32") == shares(3, 4, 2)
    assert values(tmp_path, "update_step/unchanged_bf16") == shares(3, 0, 2)
    assert values(tmp_path, "update_step/within_1e-5") == shares(3, 0, 2)
    kinds = "update_kind/{}/unchanged_{}".format
    assert values(tmp_path, kinds("attention_q", "fp32")) == shares(5, 12, 7, of=2 * 32 * 32)
    assert values(tmp_path, kinds("attention_q", "bf16")) == shares(5, 5, 0, of=2 * 32 * 32)
    assert values(tmp_path, kinds("norm", "fp32")) == shares(3, 3, 3, of=5 * 32)
    assert values(tmp_path, kinds("embedding", "fp32")) == shares(0, 0, 2, of=64 * 32)
    assert values(tmp_path, kinds("mlp", "fp32")) == shares(0, 4, 4, of=6 * 64 * 32)
    assert values(tmp_path, kinds("attention_o", "bf16")) == [1.0, 1.0, 1.0]
    assert values(tmp_path, kinds("head", "fp32")) == [], "the tied head is the embedding"
    # 5 ones in q, 3 halves in the norm; later the two ones in the embedding
    displaced = values(tmp_path, "update/displacement")
    assert displaced[0] == pytest.approx(math.sqrt(5 + 3 / 4), rel=1e-6)  # w + 1 rounds
    initial = AutoModelForCausalLM.from_pretrained(tiny_llama)
    start = torch.cat([p.detach().double().flatten() for p in initial.parameters()]).norm()
    relative = values(tmp_path, "update/relative_displacement")
    assert relative == pytest.approx([d / float(start) for d in displaced], rel=1e-12)
    steps = values(tmp_path, "update_step/displacement")
    assert steps[0] == pytest.approx(math.sqrt(3 / 4), rel=1e-6)
    assert steps[1] == pytest.approx(2 * 5e-6, rel=2e-3)  # 4 weights by 5e-6, rounded at 1e-8
    assert steps[2] == pytest.approx(math.sqrt(2), rel=1e-6)
    norms = [
        initial.get_parameter(n).detach().norm()
        for n, _ in initial.named_parameters()
        if "norm" in n
    ]
    assert values(tmp_path, "update_kind/norm/relative_displacement") == pytest.approx(
        [math.sqrt(3 / 4) / math.sqrt(sum(float(n) ** 2 for n in norms))] * 3, rel=1e-6
    )
    places = [(epoch, step) for epoch, step, _ in logged(tmp_path, "update/unchanged_fp32")]
    assert places == [(0, 2), (1, 4), (2, 6)]


def test_the_file_has_every_layer_and_tensor(tiny_llama: Path, script: list[Edit], tmp_path: Path):
    train(tiny_llama, script, tmp_path, UpdateSparsity(tolerances=[1e-5]))
    records = jsonl(tmp_path / "update_sparsity.jsonl")
    assert [(record["epoch"], record["global_step"]) for record in records] == [
        (0, 2),
        (1, 4),
        (2, 6),
    ]
    second = records[1]
    assert second["dtype"] == "torch.float32"
    assert second["total"] == pytest.approx(
        {
            "unchanged_fp32": 1 - 19 / NUMEL,
            "unchanged_bf16": 1 - 8 / NUMEL,
            "within_1e-5": 1 - 15 / NUMEL,
            "bf16_difference_isclose_1e-5": 1 - 8 / NUMEL,
            "bf16_difference_zero": 1 - 8 / NUMEL,
            "displacement": values(tmp_path, "update/displacement")[1],
            "relative_displacement": values(tmp_path, "update/relative_displacement")[1],
        }
    )
    changed = {name: t for name, t in second["tensors"].items() if t["unchanged_fp32"] < 1}
    assert changed.keys() == {QUERY, UP, NORM}
    assert changed[QUERY]["unchanged_fp32"] == 1 - 12 / 1024
    assert changed[QUERY]["unchanged_bf16"] == 1 - 5 / 1024
    assert changed[UP]["within_1e-5"] == 1.0
    assert changed[NORM]["unchanged_bf16"] == 1 - 3 / 32
    assert changed[NORM]["displacement"] == pytest.approx(math.sqrt(3 / 4), rel=1e-6)
    assert second["tensors"]["model.layers.0.mlp.up_proj.weight"]["displacement"] == 0.0
    layer = (NUMEL - 64 * 32 - 32) // 2
    layers = {name: counts["unchanged_fp32"] for name, counts in second["layers"].items()}
    assert layers == pytest.approx(
        {"0": 1 - 12 / layer, "1": 1 - 4 / layer, "None": 1 - 3 / (65 * 32)}
    )
    names = set(dict(AutoModelForCausalLM.from_pretrained(tiny_llama).named_parameters()))
    assert second["tensors"].keys() == names


def test_cadence_heatmaps_and_per_step(tiny_llama: Path, script: list[Edit], tmp_path: Path):
    callback = UpdateSparsity(every_n_epochs=2, per_step=False, heatmap_every_n=2)
    edits = [*script, nothing, nothing, *[nothing] * 6]  # 7 epochs: measured after 2, 4, 6 and 7
    train(tiny_llama, edits, tmp_path, callback)
    epochs = [epoch for epoch, _, _ in logged(tmp_path, "update/unchanged_fp32")]
    assert epochs == [1, 3, 5, 6]
    assert logged(tmp_path, "update_step/unchanged_fp32") == []
    images = events(tmp_path).Images("update/unchanged_bf16_by_layer")
    assert [image.step for image in images] == [8, 14], "the second measurement, and the last"
    scalars = events(tmp_path).Scalars("update/unchanged_fp32")
    assert [scalar.step for scalar in scalars] == [4, 8, 12, 14]


def test_storage_in_bfloat16_is_no_update(tiny_llama: Path, tmp_path: Path):
    def one_ulp(policy: PreTrainedModel) -> None:
        policy.get_parameter(NORM)[0] *= 1.25

    train(
        tiny_llama,
        [nothing, nothing, nothing, one_ulp],
        tmp_path,
        UpdateSparsity(),
        dtype=torch.bfloat16,
    )
    assert values(tmp_path, "update/unchanged_fp32") == shares(0, 1)
    assert values(tmp_path, "update/within_1e-8") == shares(0, 1)
    assert values(tmp_path, "update_step/unchanged_fp32") == shares(0, 1)
    assert jsonl(tmp_path / "update_sparsity.jsonl")[0]["dtype"] == "torch.bfloat16"


def test_no_weights_are_left_behind_not_even_by_a_failure(tiny_llama: Path, tmp_path: Path):
    seen = []

    def look(_policy: PreTrainedModel) -> None:
        seen.append(sorted(path.name for path in tmp_path.glob("scratch-*/*")))

    def fail(_policy: PreTrainedModel) -> None:
        look(_policy)
        raise RuntimeError("the disk caught fire")

    with pytest.raises(RuntimeError, match="caught fire"):
        train(tiny_llama, [look, look, look, fail], tmp_path, UpdateSparsity())
    files = [f"{index:06d}.safetensors" for index in range(20)]
    assert seen == [[], files, [], files], "only while the last step of an epoch is made"
    assert list(tmp_path.glob("scratch-*")) == []
    assert not (tmp_path / "starting_weights").exists()


def test_negative_tolerances_are_refused():
    with pytest.raises(ValueError, match=r"UpdateSparsity\.tolerances"):
        UpdateSparsity(tolerances=[1e-5, -1e-5])
