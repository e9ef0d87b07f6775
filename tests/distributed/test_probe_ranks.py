"""Trying a sharded model out: both ranks find what one process finds, also after a failed pass."""

import json
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from rlsgd.models.fast_paths import REGISTRY, verdict
from rlsgd.models.scoring import completion_logprobs, prove_scoring
from rlsgd.models.sharded_loading import decoder_layers
from rlsgd.models.sharding import Sharding, is_sharded, shard
from rlsgd.models.value_model import prove_states
from rlsgd.rollout.reading import prove_sampling
from tests.distributed.fits import on_two_ranks
from tests.distributed.test_sharded_models import make_batch
from tests.helpers.architectures import tiny_model

# all paths hold; two fall back in layout and cache; one is refused; one raises within a layer
NAMES = ("llama", "recurrent-gemma", "bert-bidirectional", "raises")
LENGTH = 40


def model_of(name: str) -> PreTrainedModel:
    if name != "raises":
        return tiny_model(name)
    model = tiny_model("llama")
    attention = model.get_submodule("model.layers.1.self_attn")
    forward = attention.forward

    def not_for_one_token(hidden_states, *args, **kwargs):
        if hidden_states.shape[1] == 1:
            raise IndexError("planted")
        return forward(hidden_states, *args, **kwargs)

    attention.forward = not_for_one_token
    return model


def outcomes(model: PreTrainedModel) -> dict[str, str | list[bool | float]]:
    """What is found of every registered path, and what comes of it: a choice, or a refusal."""
    found: dict[str, str | list[bool | float]] = {}
    for path in REGISTRY:
        v = verdict(model, path, LENGTH)
        found[path] = v.error or [v.difference <= v.tolerance, v.difference]
    steps = {"sampling": prove_sampling, "critic": prove_states}
    for name, prove in steps.items():
        try:
            found[name] = prove(model, LENGTH)
        except ValueError as error:
            found[name] = str(error)
    try:
        prove_scoring(model, LENGTH)
        with torch.no_grad():
            logprobs, _ = completion_logprobs(model, make_batch(), temperature=1.0)
        found["scores"] = logprobs.flatten().tolist()
    except ValueError as error:
        found["scores"] = str(error)
    return found


def on_a_rank(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for name in NAMES:
        model = model_of(name)
        sharding = Sharding(mesh=init_device_mesh("cpu", (2,)), device=torch.device("cpu"))
        shard(model, sharding, decoder_layers(model, model))
        found[name] = outcomes(model)
        assert is_sharded(model), "after all passes, failed ones too, the weights are shards"
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(on_a_rank, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_both_ranks_agree_with_one_process(found: list[dict], name: str):
    one, other = (ranks[name] for ranks in found)
    assert one == other
    alone = outcomes(model_of(name))
    for path, value in alone.items():
        if isinstance(value, str):
            assert one[path].partition(" differs ")[0] == value.partition(" differs ")[0], path
        else:
            assert one[path] == pytest.approx(value, abs=1e-5), path


def test_every_kind_of_outcome_is_among_them(found: list[dict]):
    sampling = {name: found[0][name]["sampling"] for name in NAMES}
    assert sampling["llama"] == "sampling with a cache"
    assert sampling["recurrent-gemma"] == sampling["raises"] == "sampling without a cache"
    assert sampling["bert-bidirectional"].startswith("--model.policy: BertLMHeadModel: sampling")
    assert found[0]["raises"]["sampling with a cache"] == "IndexError: planted"
    assert found[0]["recurrent-gemma"]["critic"] == "the critic on rows padded on the right"
