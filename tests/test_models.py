import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlsgd.core.types import TokenBatch
from rlsgd.functional import head_logprobs
from rlsgd.models.loading import load_policy
from rlsgd.models.plain_head import has_plain_head
from rlsgd.models.scoring import Way, completion_logprobs, prove_scoring, score_tokens
from tests.helpers.batches import padded_batch

ROWS = [  # ragged prompts and completions
    ([5, 9, 12, 30, 7], [8, 22, 1]),
    ([14], [3, 3, 17, 25, 40, 6]),
    ([33, 2, 19], [41]),
]


make_batch = partial(padded_batch, ROWS)


def logprobs_row_by_row(model: PreTrainedModel, temperature: float) -> Tensor:
    """All completion tokens' log-probabilities, each row alone and unpadded, whole log_softmax."""
    rows = []
    for prompt, completion in ROWS:
        ids = torch.tensor([prompt + completion])
        logprobs = (model(input_ids=ids).logits[0] / temperature).log_softmax(-1)
        rows += [logprobs[len(prompt) + i - 1, token] for i, token in enumerate(completion)]
    return torch.stack(rows)


def gradient(model: PreTrainedModel, scores: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 2, len(scores), dtype=scores.dtype)
    return list(torch.autograd.grad((scores * weights).sum(), list(model.parameters())))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(
    "padding",
    [
        {},
        {"left": 4, "right": 3},
        {"align": False},
        {"align": False, "right": 5, "pad": 1},
    ],
    ids=["left", "wider", "right", "right-wider-eos"],
)
def test_logprobs_and_gradient_equal_each_row_alone(
    tiny_model: Path, padding: dict[str, Any], temperature: float
):
    model = load_policy(str(tiny_model)).double()
    batch = make_batch(**padding)
    logprobs, _ = completion_logprobs(model, batch, temperature=temperature)
    scored = logprobs[batch.completion_mask]
    expected = logprobs_row_by_row(model, temperature)
    assert expected.std() > 0.5, "the model must discriminate"
    torch.testing.assert_close(scored, expected, rtol=0, atol=1e-10)
    assert logprobs.shape == batch.input_ids.shape
    assert not logprobs[~batch.completion_mask].any()
    for actual, alone in zip(gradient(model, scored), gradient(model, expected), strict=True):
        torch.testing.assert_close(actual, alone, rtol=0, atol=1e-10)


def test_tokens_at_padding_change_no_value_and_no_gradient(tiny_model: Path):
    model = load_policy(str(tiny_model))
    batch = make_batch(left=2, right=2)
    other = make_batch(left=2, right=2)
    noise = torch.randint(2, 40, batch.input_ids.shape, generator=torch.Generator().manual_seed(0))
    other.input_ids = torch.where(batch.attention_mask, batch.input_ids, noise)
    assert (other.input_ids != batch.input_ids).sum() == (~batch.attention_mask).sum()
    values, _ = completion_logprobs(model, batch, temperature=0.6)
    perturbed, _ = completion_logprobs(model, other, temperature=0.6)
    assert torch.equal(values, perturbed)
    mask = batch.completion_mask
    for a, b in zip(gradient(model, values[mask]), gradient(model, perturbed[mask]), strict=True):
        assert torch.equal(a, b)


def test_a_hole_in_the_completion_mask_removes_that_token_only(tiny_llama: Path):
    model = load_policy(str(tiny_llama))
    batch, holed = make_batch(), make_batch()
    holed.completion_mask[1, 7] = False  # third token of the second completion; still attended
    whole, _ = completion_logprobs(model, batch, temperature=1.0)
    logprobs, entropy = completion_logprobs(model, holed, temperature=1.0, with_entropy=True)
    assert entropy is not None and entropy[1, 7] == 0
    torch.testing.assert_close(logprobs, whole.masked_fill(~holed.completion_mask, 0))
    assert whole[1, 7] != 0


def test_logits_exist_for_scored_tokens_only(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    model = load_policy(str(tiny_model))
    prove_scoring(model)
    seen: list[torch.Size] = []

    def spy(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(inputs.shape)
        return nn.functional.linear(inputs, weight, bias)

    monkeypatch.setattr(head_logprobs, "linear", spy)
    batch = make_batch(left=4, right=3)
    completion_logprobs(model, batch, temperature=1.0)
    assert seen == [(10, 32)]  # 3 + 6 + 1 completion tokens, hidden size 32
    batch.completion_mask[1] = False
    completion_logprobs(model, batch, temperature=1.0)
    assert seen[1:] == [(4, 32)]


def test_nothing_is_computed_after_the_last_predicting_token(tiny_model: Path):
    model = load_policy(str(tiny_model))
    seen: list[torch.Size] = []
    completion_logprobs(model, make_batch(), temperature=1.0)  # the head is looked at once
    embeddings: Any = model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _module, ids, _output: seen.append(ids[0].shape))
    completion_logprobs(model, make_batch(right=3), temperature=1.0)
    assert seen == [(3, 10)]  # prompts of 5 and completions of 6, whose last token predicts nothing


@pytest.mark.parametrize("changed", ["capped", "scaled"])
def test_logits_that_are_not_the_heads_own_are_computed_by_the_model(
    tiny_llama: Path, changed: str
):
    model: Any = load_policy(str(tiny_llama)).double()
    plain = model.forward

    def forward(**inputs: Any) -> Any:
        output = plain(**inputs)
        cap = output.logits / 2
        output.logits = cap.tanh() * 2 if changed == "capped" else cap
        return output

    assert has_plain_head(load_policy(str(tiny_llama)))
    model.forward = forward
    assert not has_plain_head(model)
    batch = make_batch()
    logprobs, _ = completion_logprobs(model, batch, temperature=0.6)
    expected = logprobs_row_by_row(model, 0.6)
    torch.testing.assert_close(logprobs[batch.completion_mask], expected, rtol=0, atol=1e-12)


class FixedLogits(nn.Module):
    """Stands in for a model: the same logits in every column."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.config = None

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Tensor, logits_to_keep: Tensor, **_kwargs: Any) -> Any:
        shape = (len(input_ids), len(logits_to_keep), -1)
        return type("Output", (), {"logits": self.logits.expand(*shape)})


def test_entropy_and_logprob_by_hand():
    # At temperature 0.5 the logits are (0, 2 ln 2, 2 ln 2, -inf): p = (1/9, 4/9, 4/9, 0).
    model: Any = FixedLogits([0.0, math.log(2), math.log(2), -math.inf])
    batch = TokenBatch(
        input_ids=torch.tensor([[3, 0, 1]]),
        attention_mask=torch.ones(1, 3, dtype=torch.bool),
        completion_mask=torch.tensor([[False, True, True]]),
    )
    logprobs, entropy = score_tokens(model, batch, Way(), temperature=0.5, with_entropy=True)
    expected = 1 / 9 * math.log(9) + 2 * 4 / 9 * math.log(9 / 4)
    torch.testing.assert_close(entropy.detach(), torch.tensor([expected, expected]))
    torch.testing.assert_close(logprobs.detach(), torch.tensor([1 / 9, 4 / 9]).log())


def test_shipped_dropout_is_off_in_train_mode(tiny_llama: Path, tiny_gpt2: Path):
    for folder, shipped in ((tiny_llama, "attention_dropout"), (tiny_gpt2, "resid_pdrop")):
        assert json.loads((folder / "config.json").read_text())[shipped] == 0.1
        policy, batch = load_policy(str(folder)), make_batch()
        assert policy.training
        old_logprobs, _ = completion_logprobs(policy, batch, temperature=1.0)
        logprobs, _ = completion_logprobs(policy, batch, temperature=1.0)
        assert torch.equal((logprobs - old_logprobs).exp(), torch.ones(batch.input_ids.shape))
        noisy = AutoModelForCausalLM.from_pretrained(folder).train()
        with pytest.raises(ValueError, match=r"scoring rows .* nats"):  # without it, an illness
            completion_logprobs(noisy, batch, temperature=1.0)


def test_a_batch_without_completion_tokens_has_no_logprobs(tiny_llama: Path):
    batch = make_batch()
    batch.completion_mask[:] = False
    logprobs, _ = completion_logprobs(load_policy(str(tiny_llama)), batch, temperature=1.0)
    assert torch.equal(logprobs, torch.zeros(batch.input_ids.shape))
