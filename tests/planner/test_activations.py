"""Activations: closed forms against the tensors that autograd really saves."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsgd.core.types import TokenBatch
from rlsgd.functional import head_logprobs as head_logprobs_module
from rlsgd.functional.head_logprobs import head_logprobs
from rlsgd.models.scoring import completion_logprobs
from rlsgd.models.shared_prompts import share_prompts
from rlsgd.planner.activations import (
    activation_bytes,
    cast_bytes,
    forward_logit_bytes,
    head_backward_bytes,
    layer_bytes,
    saved_logit_bytes,
)
from rlsgd.planner.architecture import Architecture, Weight, load_architecture
from rlsgd.planner.batches import Batch, Dtypes, SharedBatch
from tests.planner.measuring import allocations

PRECISIONS = {
    "32-true": Dtypes(4, 4, 4),
    "bf16-true": Dtypes(2, 2, 2),
    "bf16-mixed": Dtypes(4, 2, 4),  # autocast: the residual stream stays float32
}
B, T, K = 4, 20, 7  # T with the last token, which the model does not see
MODELS = ["tiny_llama", "tiny_llama_untied", "tiny_qwen3"]


def rollouts(*, groups: int = B, padded: bool = False) -> TokenBatch:
    """B completions, of `groups` prompts; where padded the first prompt is shorter."""
    ids = torch.randint(2, 60, (B, T))
    ids[:, : T - K] = ids[:groups, : T - K].repeat_interleave(B // groups, 0)
    ids[:, 0] = torch.arange(2, 2 + groups).repeat_interleave(B // groups)  # all different
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, :5] = not padded
    scored = torch.zeros_like(mask)
    scored[:, T - K :] = True
    return TokenBatch(ids, mask, scored)


def saved_bytes(model: PreTrainedModel, precision: str, batch: TokenBatch) -> int:
    """Storages that the forward pass and the log-probabilities save, without the parameters."""
    completion_logprobs(model, batch, temperature=1.0)  # the model is tried out once, not here
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


def test_shorter_completions_and_prompts_keep_no_more(tiny_llama: Path):
    """Copies in padded rows, of at most the tokens that are planned."""
    model = load(tiny_llama)
    share_prompts(model)
    batch = rollouts(groups=2)
    shape = SharedBatch(B, T - 1, K, padded=False, prompts=2, repeats_keys=False)
    planned = planned_bytes(tiny_llama, "32-true", shape)
    batch.attention_mask[: B // 2, :1] = False  # one prompt is shorter
    prompts = saved_bytes(model, "32-true", batch)
    batch.attention_mask[1, -2:] = batch.completion_mask[1, -2:] = False  # and one completion
    completions = saved_bytes(model, "32-true", batch)
    assert 0.9 * planned < completions < prompts < planned


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen3"])
def test_checkpointing_keeps_the_inputs_of_layers_alone(
    name: str, padded: bool, shared: bool, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(name)
    model, architecture = load(folder), load_architecture(str(folder))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = Batch(B, T - 1, K, padded)
    if shared:
        share_prompts(model)
        batch = SharedBatch(B, T - 1, K, padded=False, prompts=2, repeats_keys=False)
    planned = activation_bytes(architecture, batch, PRECISIONS["32-true"], checkpointing=True)
    planned += saved_logit_bytes(architecture, batch, "cpu")
    # keyword arguments of the layers wait for the backward pass without being saved by autograd:
    # cosine and sine, the mask, and which prompt is whose; and the generator's state
    waiting = 2 * 4 * batch.computed * architecture.head_dim + batch.mask_numel + 8 * B * shared
    waiting += architecture.layers * torch.get_rng_state().nbytes
    found = saved_bytes(model, "32-true", rollouts(groups=2, padded=padded and not shared))
    assert planned - waiting == found


@pytest.mark.parametrize("width", [64, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tokens", [80, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peaks_of_the_head(
    dtype: torch.dtype,
    tokens: int,
    temperature: float,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
):
    """Of 80 tokens, all in one chunk or 30 at a time; the head's gradient large or small."""
    vocabulary, scored = 3000, 80
    monkeypatch.setattr(head_logprobs_module, "CPU_LOGITS_BYTES", 4 * vocabulary * tokens)
    hidden = torch.randn(scored, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, vocabulary, (scored,))
    with allocations() as found:
        with found.phase("forward"):
            logprobs, _ = head_logprobs(
                hidden, weight, targets, temperature=temperature, with_entropy=True
            )
            loss = logprobs.sum()
        with found.phase("backward"):
            gradients = torch.autograd.grad(loss, (hidden, weight))
    head = Weight((vocabulary, width), roles=frozenset({"head"}))
    model = Architecture("head", (head,), 1, width, vocabulary, 1, 1, None)
    batch, item = Batch(1, scored, scored, padded=False), dtype.itemsize
    dtypes = Dtypes(item, item, item)
    # the differences are scores, 20 bytes a token at most
    scores = 20 * scored
    forward = forward_logit_bytes(model, batch, "cpu")
    assert forward <= found.peaks["forward"] <= forward + scores
    backward = sum(head_backward_bytes(model, batch, dtypes, "cpu"))
    if dtype == torch.bfloat16:  # a CPU adds a product in bfloat16 by a copy in float32
        kept = saved_logit_bytes(model, batch, "cpu")
        adding = kept + 2 * tokens * vocabulary + (4 + 2 + 4) * vocabulary * width
        backward = max(backward, adding + 2 * scored * width)
    assert abs(found.peaks["backward"] - backward) <= scores
    assert len(gradients) == 2


def test_the_head_in_bfloat16_by_hand():
    """On a GPU, 10 tokens of a vocabulary of 100, kept, before a head of width 7 or 1000."""
    for width, expected in {
        7: (10 * 1000, 4 * 700 + 2 * 2 * 70),  # the gradient's cast beside logits and gradient
        1000: (6 * 1000, 6 * 100_000 + 2 * 2 * 10_000),  # the product beside the sum
    }.items():
        head = Weight((100, width), roles=frozenset({"head"}))
        model = Architecture("head", (head,), 1, width, 100, 1, 1, None)
        batch = Batch(1, 10, 10, padded=False)
        assert head_backward_bytes(model, batch, Dtypes(2, 2, 2), "gpu") == expected


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
