import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsgd.callbacks import EffectiveRank, UpdateSparsity
from rlsgd.callbacks.base import EveryNEpochs, append_jsonl
from rlsgd.core.layer_kinds import kind_of, layer_of
from tests.callbacks.callback_stub import PolicyStub, Scripted, jsonl, loader, make_trainer, values

LLAMA = {
    "model.embed_tokens.weight": ("embedding", None),
    "model.layers.1.self_attn.q_proj.weight": ("attention_q", 1),
    "model.layers.1.self_attn.k_proj.weight": ("attention_k", 1),
    "model.layers.1.self_attn.v_proj.weight": ("attention_v", 1),
    "model.layers.1.self_attn.o_proj.weight": ("attention_o", 1),
    "model.layers.1.mlp.gate_proj.weight": ("mlp", 1),
    "model.layers.1.mlp.up_proj.weight": ("mlp", 1),
    "model.layers.1.mlp.down_proj.weight": ("mlp", 1),
    "model.layers.1.input_layernorm.weight": ("norm", 1),
    "model.layers.1.post_attention_layernorm.weight": ("norm", 1),
    "model.norm.weight": ("norm", None),
    "lm_head.weight": ("head", None),
}
QWEN3 = {
    **{name: kind for name, kind in LLAMA.items() if name != "lm_head.weight"},  # it is tied
    "model.layers.1.self_attn.q_norm.weight": ("norm", 1),
    "model.layers.1.self_attn.k_norm.weight": ("norm", 1),
}
GPT2 = {
    "transformer.wte.weight": ("embedding", None),
    "transformer.wpe.weight": ("embedding", None),
    "transformer.ln_f.weight": ("norm", None),
    "transformer.ln_f.bias": ("norm", None),
    **{
        f"transformer.h.1.{part}.{sort}": (kind, 1)
        for sort in ("weight", "bias")
        for part, kind in {
            "ln_1": "norm",
            "attn.c_attn": "attention_qkv",
            "attn.c_proj": "attention_o",
            "ln_2": "norm",
            "mlp.c_fc": "mlp",
            "mlp.c_proj": "mlp",
        }.items()
    },
}


@pytest.mark.parametrize(
    ("model", "expected"),
    [("tiny_llama_untied", LLAMA), ("tiny_qwen3", QWEN3), ("tiny_gpt2", GPT2)],
)
def test_kind_and_layer_of_every_parameter(
    model: str, expected: dict[str, Any], request: pytest.FixtureRequest
):
    policy = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(model))
    names = [name for name, _ in policy.named_parameters()]
    found = {name: (kind_of(name), layer_of(name)) for name in names}
    first_layer = {name: place for name, place in found.items() if place[1] == 0}
    for name in first_layer:
        del found[name]
    assert found == expected
    in_second = {
        name.replace(".0.", ".1.", 1): (kind, 1) for name, (kind, _) in first_layer.items()
    }
    assert in_second == {name: place for name, place in expected.items() if place[1] == 1}


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("model.layers.10.self_attn.qkv_proj.weight", "attention_qkv", 10),
        ("gpt_neox.layers.3.attention.query_key_value.weight", "attention_qkv", 3),
        ("gpt_neox.layers.3.attention.dense.bias", "attention_o", 3),
        ("model.decoder.layers.2.fc1.weight", "mlp", 2),
        ("model.layers.4.mlp.experts.7.up_proj.weight", "experts", 4),
        ("model.layers.4.mlp.experts.gate_up_proj", "experts", 4),
        ("model.layers.4.mlp.gate.weight", "router", 4),
        ("model.layers.4.mlp.gate_proj.weight", "mlp", 4),
        ("model.layers.4.mlp.shared_experts.up_proj.weight", "shared_expert", 4),
        ("model.layers.4.mlp.shared_expert_gate.weight", "router", 4),
        ("model.layers.0.conv.out_proj.weight", "convolution", 0),
        ("model.layers.0.feed_forward.w1.weight", "mlp", 0),
        ("backbone.layers.0.mixer.out_proj.weight", "state_space", 0),
        ("backbone.layers.0.mixer.q_proj.weight", "attention_q", 0),
        ("model.layers.0.self_attn.dense.weight", "attention_o", 0),
        ("model.layers.0.self_attn.q_a_proj.weight", "attention_q", 0),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "attention_k", 0),
        ("model.layers.0.self_attn.kv_a_layernorm.weight", "norm", 0),
        ("model.layers.0.self_attn.sinks", "other:self_attn.sinks", 0),
        ("value_head", "other:value_head", None),
    ],
)
def test_kinds_of_other_families(name: str, kind: str, layer: int | None):
    assert (kind_of(name), layer_of(name)) == (kind, layer)


@pytest.mark.parametrize(
    ("every", "max_epochs", "expected"),
    [(1, 3, [0, 1, 2]), (2, 5, [1, 3, 4]), (3, 6, [2, 5]), (10, 4, [3]), (2, -1, [1, 3, 5])],
)
def test_every_n_epochs_and_the_last(every: int, max_epochs: int, expected: list[int]):
    trainers: list[Any] = [
        SimpleNamespace(current_epoch=epoch, max_epochs=max_epochs) for epoch in range(6)
    ]
    due = [t.current_epoch for t in trainers if EveryNEpochs(every).is_due(t)]
    assert [epoch for epoch in due if max_epochs < 0 or epoch < max_epochs] == expected


def test_a_cadence_of_zero_is_refused():
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1"):
        EveryNEpochs(0)


class RankStub:
    """A trainer of which only the folder is asked: a broadcast that all ranks must join."""

    def __init__(self, folder: Path, *, is_global_zero: bool) -> None:
        self.folder, self.is_global_zero, self.calls = folder, is_global_zero, Counter()

    @property
    def log_dir(self) -> str:
        self.calls["broadcast"] += 1
        return str(self.folder)


def test_every_rank_joins_the_broadcast_and_the_first_writes(tmp_path: Path):
    first: Any = RankStub(tmp_path / "new", is_global_zero=True)
    second: Any = RankStub(tmp_path / "other", is_global_zero=False)
    records = [{"text": "é\n\ud83d"}, {"n": 1}]
    for trainer in (first, second):
        append_jsonl(trainer, "x.jsonl", *records)
        append_jsonl(trainer, "x.jsonl")
    assert first.calls == second.calls == {"broadcast": 2}
    assert not (tmp_path / "other").exists()
    lines = (tmp_path / "new" / "x.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records


def train(
    folder: Path, tmp_path: Path, *, epochs: int, resume: Path | None = None, **settings: Any
) -> tuple[dict[str, torch.Tensor], Path]:
    """One entry of each parameter grows by 1 in each epoch; returns weights and checkpoint."""

    def grow(policy: PreTrainedModel) -> None:
        for index, parameter in enumerate(policy.parameters()):
            parameter.view(-1)[index] += 1.0

    module = PolicyStub(folder, lambda policy: Scripted(policy, [grow] * epochs), **settings)
    callbacks = [UpdateSparsity(), EffectiveRank()]
    trainer = make_trainer(tmp_path, callbacks, epochs=epochs)
    trainer.fit(module, loader(1), ckpt_path=resume)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return module.policy.state_dict(), tmp_path / "last.ckpt"


@pytest.mark.parametrize("random_weights", [False, True])
def test_a_resumed_run_measures_from_the_first_start(
    tiny_llama: Path, tmp_path: Path, random_weights: bool
):
    """Its folder is another one, and its live weights are trained already."""
    settings = {"random_weights": random_weights}
    _, checkpoint = train(tiny_llama, tmp_path / "first", epochs=2, **settings)
    train(tiny_llama, tmp_path / "second", epochs=4, resume=checkpoint, **settings)
    numel = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_llama).parameters())
    moved_since_start = 1 - 20 / numel  # one entry in each of 20 tensors, ever the same one
    for folder, epochs in (("first", [0, 1]), ("second", [2, 3])):
        shares = values(tmp_path / folder, "update/unchanged_fp32")
        assert shares == pytest.approx([moved_since_start] * 2, abs=1e-12)
        records = jsonl(tmp_path / folder / "effective_rank.jsonl")
        assert [record["epoch"] for record in records] == epochs
        assert {t["effective_rank"] for record in records for t in record["tensors"].values()} == {
            1
        }
    snapshots = sorted(path.parent.name for path in tmp_path.glob("*/starting_weights"))
    assert snapshots == (["first"] if random_weights else [])


def test_a_resumed_run_whose_start_is_gone_says_so(tiny_llama: Path, tmp_path: Path):
    _, checkpoint = train(tiny_llama, tmp_path / "first", epochs=1, random_weights=True)
    (tmp_path / "first").rename(tmp_path / "moved")
    with pytest.raises(
        FileNotFoundError, match="starting weights of the resumed run are not there"
    ):
        train(
            tiny_llama,
            tmp_path / "second",
            epochs=2,
            resume=tmp_path / "moved" / checkpoint.name,
            random_weights=True,
        )
