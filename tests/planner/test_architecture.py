"""Architectures: parameters counted on the meta device, against published and real models."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rlsgd.models.value_model import load_value_model
from rlsgd.optimizers.muon import is_layer_matrix
from rlsgd.optimizers.roles import mark_roles
from rlsgd.planner.architecture import PUBLISHED, load_architecture


def count_by_hand(config: dict) -> int:
    """Embedding, head unless tied, layers of four projections, three of the MLP, norms."""
    h, i = config["hidden_size"], config["intermediate_size"]
    a, g, d = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    norms = 2 * h + (2 * d if config["model_type"] == "qwen3" else 0)
    layer = 2 * h * a * d + 2 * h * g * d + 3 * h * i + norms
    ends = (2 - config["tie_word_embeddings"]) * config["vocab_size"] * h + h
    return config["num_hidden_layers"] * layer + ends


# billions, as the models are named or described by those who published them
BILLIONS = {
    "llama-3.1-70b": 70.6,
    "llama-3.1-8b": 8.03,
    "qwen3-0.6b": 0.6,
    "qwen3-1.7b": 1.7,
    "qwen3-4b": 4.0,
    "qwen3-8b": 8.2,
    "smollm2-135m": 0.135,
}


@pytest.mark.parametrize("name", BILLIONS)
def test_published_configs(name: str):
    published = json.loads(PUBLISHED.read_text())
    assert published.keys() == BILLIONS.keys()
    model = load_architecture(name)
    assert model.num_weights == count_by_hand(published[name])
    assert model.num_weights / 1e9 == pytest.approx(BILLIONS[name], rel=0.015)  # two digits of it


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_llama_untied", "tiny_qwen3", "tiny_gpt2"])
def test_a_folder_with_a_config_alone(name: str, tmp_path: Path, request: pytest.FixtureRequest):
    folder: Path = request.getfixturevalue(name)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    found = load_architecture(str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(folder)
    mark_roles(model)
    parameters = list(model.parameters())
    assert [w.shape for w in found.weights] == [tuple(p.shape) for p in parameters]
    assert [w.is_layer_matrix for w in found.weights] == [is_layer_matrix(p) for p in parameters]
    assert found.tied_numel == (0 if "untied" in name else 64 * 32)
    assert found.head_numel == 64 * 32
    assert (found.layers, found.hidden, found.vocabulary) == (2, 32, 64)
    assert found.kv_heads == (4 if name == "tiny_gpt2" else 2)
    assert found.head_dim == (16 if name == "tiny_qwen3" else 8)
    assert (found.decoder is None) == (name == "tiny_gpt2")


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_llama_untied"])
def test_the_critic_has_the_weights_of_a_value_model(name: str, request: pytest.FixtureRequest):
    folder = str(request.getfixturevalue(name))
    real = load_value_model(folder, shared_backbone=False, hidden_size=32)
    critic = load_architecture(folder).critic()
    shapes = sorted(weight.shape for weight in critic.weights)
    assert shapes == sorted(tuple(p.shape) for p in real.parameters())
    assert critic.head_numel == critic.vocabulary == 0


def test_shards_are_those_of_the_first_rank(tiny_llama: Path):
    model = load_architecture(str(tiny_llama))
    # rows of each, rounded up: embedding 64 x 32; in each of two layers q, o, k, v, gate, up, down,
    # two norms; the last norm
    rows = 22 * 32 + 2 * (2 * 11 * 32 + 2 * 6 * 32 + 2 * 22 * 32 + 11 * 64 + 2 * 11) + 11
    assert model.held(3) == rows
    assert model.held(1) == model.num_weights


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("no-such-model", ["--model no-such-model", "no such folder", "qwen3-1.7b"]),
        ("", ["--model", "empty"]),
        ("folder", ["--model", "no model can be built from its config", "qwen3-1.7b"]),
    ],
)
def test_what_is_no_model(name: str, fragments: list[str], tmp_path: Path):
    if name == "folder":
        name = str(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ValueError, match=r"^--model") as error:
        load_architecture(name)
    assert all(fragment in str(error.value) for fragment in fragments)
