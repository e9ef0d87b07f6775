from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config

from rlsgd.core.types import TokenBatch
from rlsgd.models.loading import load_policy
from rlsgd.models.scoring import completion_logprobs
from rlsgd.models.shared_prompts import share_prompts
from rlsgd.rollout.sampler import HFSampler
from tests.helpers.batches import padded_batch
from tests.helpers.tiny_models import LLAMA, PAD, save_tiny

ROWS = [  # two groups, a stray third completion of the first prompt, one prompt alone; ragged
    ([5, 9, 12, 30, 7], [8, 22, 1]),
    ([5, 9, 12, 30, 7], [3, 3, 17, 25, 40, 6]),
    ([14], [41]),
    ([14], [2, 11]),
    ([5, 9, 12, 30, 7], [8, 22, 4, 4]),
    ([5, 9, 12], [19, 31, 1]),
]
SHARED_TOKENS = (5 + 1 + 3) + (2 + 5 + 0 + 1 + 3 + 2)  # the last of a completion predicts nothing


make_batch = partial(padded_batch, ROWS)


def scores_and_gradients(
    model: PreTrainedModel, batch: TokenBatch
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    logprobs, entropy = completion_logprobs(
        model, batch, temperature=0.7, with_entropy=True, entropy_gradient=True
    )
    assert entropy is not None
    slopes = torch.linspace(-1, 2, batch.input_ids.numel(), dtype=logprobs.dtype)
    slopes = slopes.reshape(batch.input_ids.shape)
    loss = (slopes * logprobs).sum() + (slopes * entropy**2).sum()
    return logprobs, entropy, torch.autograd.grad(loss, list(model.parameters()))


def assert_equal_paths(folder: Path, batch: TokenBatch, *, checkpointing: bool = False) -> None:
    plain: Any = load_policy(str(folder))
    shared: Any = load_policy(str(folder))
    share_prompts(shared)
    if checkpointing:
        shared.gradient_checkpointing_enable({"use_reentrant": False})
    expected = scores_and_gradients(plain, batch)
    found = scores_and_gradients(shared, batch)
    # Logits are up to 10 and sums have tens of terms: some 20 roundings of float32, in which
    # transformers has norms and rotations whatever the weights' dtype.
    tolerance = 200 * torch.finfo(torch.float32).eps
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
    for one, other in zip(found[2], expected[2], strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, scale))


@pytest.fixture(scope="module")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Biases on queries, keys and values; every query head with a key head of its own."""
    config = Qwen2Config(**LLAMA | {"num_key_value_heads": 4}, pad_token_id=PAD)
    return save_tiny(tmp_path_factory.mktemp("tiny") / "qwen2", config)


@pytest.mark.parametrize(
    "padding",
    [{}, {"left": 3, "right": 2}, {"align": False, "right": 1}, {"align": False, "left": 2}],
    ids=str,
)
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_llama_untied", "tiny_qwen3", "tiny_qwen2"])
def test_shared_prompts_equal_separate_rows(
    request: pytest.FixtureRequest, name: str, padding: dict[str, Any]
):
    assert_equal_paths(request.getfixturevalue(name), make_batch(**padding))


def test_equal_lengths_need_no_padding(tiny_qwen3: Path):
    rows = [([5, 9, 12], [8, 22, 1]), ([5, 9, 12], [7, 4, 1]), ([6, 6, 2], [9, 9, 8])]
    assert_equal_paths(tiny_qwen3, padded_batch(rows))


def test_single_token_completions(tiny_llama: Path):
    rows = [([5, 9, 12], [8]), ([5, 9, 12], [7]), ([6, 6], [9])]
    assert_equal_paths(tiny_llama, padded_batch(rows))


def test_holes_and_rows_without_scored_tokens(tiny_llama: Path):
    batch = make_batch(left=1)
    batch.completion_mask[1, 8] = False  # amid a completion: still seen by what follows
    batch.completion_mask[4] = False
    assert_equal_paths(tiny_llama, batch)


def test_a_batch_without_scored_tokens_has_no_logprobs(tiny_llama: Path):
    model = load_policy(str(tiny_llama))
    share_prompts(model)
    batch = make_batch()
    batch.completion_mask[:] = False
    logprobs, _ = completion_logprobs(model, batch, temperature=1.0)
    assert logprobs.shape == batch.input_ids.shape and not logprobs.any()


def test_activation_checkpointing_changes_nothing(tiny_qwen3: Path):
    assert_equal_paths(tiny_qwen3, make_batch(left=1), checkpointing=True)


@pytest.mark.parametrize("left", [0, 4])
def test_each_prompt_is_computed_once_and_padding_never(tiny_llama: Path, left: int):
    model = load_policy(str(tiny_llama))
    share_prompts(model)
    share_prompts(model)  # a second loop of the trainer calls it again
    batch = make_batch(left=left, right=left)
    completion_logprobs(model, batch, temperature=1.0)
    seen: list[torch.Size] = []
    embeddings: Any = model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _module, ids, _output: seen.append(ids[0].shape))
    completion_logprobs(model, batch, temperature=1.0)
    assert seen == [(1, SHARED_TOKENS)]


def test_other_passes_are_as_before(tiny_qwen3: Path):
    plain, shared = (load_policy(str(tiny_qwen3)).eval() for _ in range(2))
    share_prompts(shared)
    batch = make_batch()
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids[:, :5],
        "attention_mask": batch.attention_mask[:, :5].long(),
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": PAD,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    with torch.no_grad():
        expected: Any = plain.generate(**inputs)  # pyright: ignore[reportCallIssue]
        found: Any = shared.generate(**inputs)  # pyright: ignore[reportCallIssue]
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(torch.stack(found.scores), torch.stack(expected.scores))
    sampled = [
        HFSampler().sample(
            model,
            [[5, 9, 12, 30], [14, 7]],
            completions_per_prompt=3,
            max_completion_tokens=6,
            temperature=1.0,
            stop_token_ids=[1],
            pad_token_id=PAD,
            seed=0,
        )
        for model in (plain, shared)
    ]
    assert torch.equal(sampled[0].input_ids, sampled[1].input_ids)


@pytest.mark.parametrize("kind", ["sliding", "eager"])
def test_an_attention_that_cannot_is_refused(tmp_path: Path, tiny_llama: Path, kind: str):
    if kind == "sliding":
        config = Qwen2Config(
            **LLAMA,
            pad_token_id=PAD,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
        )
        model = load_policy(str(save_tiny(tmp_path / "sliding", config)))
    else:
        model = load_policy(str(tiny_llama))
        model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"--model.share_prompts true: .*(eager|sliding)"):
        share_prompts(model)
