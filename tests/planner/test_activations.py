"""Activations: closed forms against the tensors that autograd really saves."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsgd.planner.activations import (
    activation_bytes,
    cast_bytes,
    layer_bytes,
    saved_logit_bytes,
)
from rlsgd.planner.architecture import load_architecture
from rlsgd.planner.batches import Batch, Dtypes, SharedBatch
from rlsgd.scoring import completion_logprobs
from rlsgd.shared_prompts import share_prompts
from rlsgd.types import Rollouts

PRECISIONS = {
    "32-true": Dtypes(4, 4, 4),
    "bf16-true": Dtypes(2, 2, 2),
    "bf16-mixed": Dtypes(4, 2, 4),  # autocast: the residual stream stays float32
}
B, T, K = 4, 20, 7  # T with the last token, which the model does not see
MODELS = ["tiny_llama", "tiny_llama_untied", "tiny_qwen3"]


def rollouts(*, groups: int = B, padded: bool = False) -> Rollouts:
    """B completions, of `groups` prompts; where padded the first prompt is shorter."""
    ids = torch.randint(2, 60, (B, T))
    ids[:, : T - K] = ids[:groups, : T - K].repeat_interleave(B // groups, 0)
    ids[:, 0] = torch.arange(2, 2 + groups).repeat_interleave(B // groups)  # all different
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, :5] = not padded
    scored = torch.zeros_like(mask)
    scored[:, T - K :] = True
    return Rollouts(ids, mask, scored, truncated=torch.zeros(B, dtype=torch.bool))


def saved_bytes(model: PreTrainedModel, precision: str, batch: Rollouts) -> int:
    """Storages that the forward pass and the log-probabilities save, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(saved)
        return saved

    mixed = precision == "bf16-mixed"
    context = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved), context:
        completion_logprobs(model, batch, temperature=1.0, with_entropy=True)
    return sum(sizes.values())


def load(folder: Path, precision: str = "32-true") -> PreTrainedModel:
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attention_dropout=0.0).train()


def planned_bytes(folder: Path, precision: str, batch: Batch) -> int:
    model, dtypes = load_architecture(str(folder)), PRECISIONS[precision]
    planned = activation_bytes(model, batch, dtypes) + saved_logit_bytes(model, batch, "cpu")
    return planned + cast_bytes(model, dtypes)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_bytes_are_those_that_autograd_saves(
    name: str, precision: str, padded: bool, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(name)
    planned = planned_bytes(folder, precision, Batch(B, T - 1, K, padded))
    assert planned == saved_bytes(load(folder, precision), precision, rollouts(padded=padded))


@pytest.mark.parametrize("groups", [1, 2, B])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_bytes_where_completions_share_their_prompt(
    name: str, precision: str, groups: int, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(name)
    model = load(folder, precision)
    share_prompts(model)
    shape = SharedBatch(B, T - 1, K, padded=False, prompts=groups, repeats_keys=False)
    planned = planned_bytes(folder, precision, shape)
    assert planned == saved_bytes(model, precision, rollouts(groups=groups))


def test_a_layer_by_hand():
    """One Llama layer of SmolLM2 in bfloat16, without padding, for each token."""
    model = load_architecture("smollm2-135m")
    norms = 2 * (4 * 576 + 4 + 2 * 576)
    inputs = 2 * 2 * 576
    attention = 2 * 64 * (9 + 9 + 3 + 3) + 4 * 9
    mlp = 4 * 2 * 1536
    assert layer_bytes(model, Batch(1, 1, 1, padded=False), Dtypes(2, 2, 2)) == (
        norms + inputs + attention + mlp
    )
