"""Activations: closed forms against the tensors that autograd really saves."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsgd.functional.logprobs import token_logprobs
from rlsgd.planner.activations import (
    Batch,
    Dtypes,
    activation_bytes,
    cast_bytes,
    layer_bytes,
    saved_logit_bytes,
)
from rlsgd.planner.architecture import load_architecture

PRECISIONS = {
    "32-true": Dtypes(4, 4, 4),
    "bf16-true": Dtypes(2, 2, 2),
    "bf16-mixed": Dtypes(4, 2, 4),  # autocast: the residual stream stays float32
}
B, T, K = 3, 20, 7


def saved_bytes(model: PreTrainedModel, precision: str, *, padded: bool) -> int:
    """Storages that the forward pass and the log-probabilities save, without the parameters."""
    ids, mask = torch.randint(2, 60, (B, T)), torch.ones(B, T, dtype=torch.long)
    mask[0, :5] = 0 if padded else 1
    columns = torch.arange(T - 1 - K, T - 1)
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
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            logits_to_keep=columns,
            use_cache=False,
        ).logits
        token_logprobs(logits, ids[:, columns + 1])
    return sum(sizes.values())


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_llama_untied", "tiny_qwen3"])
def test_bytes_are_those_that_autograd_saves(
    name: str, precision: str, padded: bool, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(name)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attention_dropout=0.0).train()
    architecture, dtypes = load_architecture(str(folder)), PRECISIONS[precision]
    batch = Batch(B, T, K, padded)
    planned = activation_bytes(architecture, batch, dtypes) + saved_logit_bytes(architecture, batch)
    planned += cast_bytes(architecture, dtypes)
    assert planned == saved_bytes(model, precision, padded=padded)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen3"])
def test_checkpointing_keeps_the_inputs_of_layers_alone(
    name: str, padded: bool, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(name)
    model = AutoModelForCausalLM.from_pretrained(folder, attention_dropout=0.0).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    architecture, batch = load_architecture(str(folder)), Batch(B, T, K, padded)
    planned = activation_bytes(architecture, batch, PRECISIONS["32-true"], checkpointing=True)
    planned += saved_logit_bytes(architecture, batch)
    # keyword arguments of the layers wait for the backward pass without being saved by autograd
    angles = 2 * 4 * B * T * architecture.head_dim
    mask = B * T**2 if padded else 0
    assert planned - angles - mask == saved_bytes(model, "32-true", padded=padded)


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
