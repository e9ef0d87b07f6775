import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlsgd.core.types import Sampled
from rlsgd.functional.logprobs import draw_tokens, draw_with_entropy, token_entropy
from rlsgd.models.loading import load_policy
from rlsgd.models.scoring import completion_logprobs
from rlsgd.rollout.sampler import HFSampler, assemble, left_pad
from tests.helpers.tiny_models import EOS, PAD

PROMPTS = [[5, 9, 12, 30, 7], [14], [33, 2, 19]]
BUDGET = 8


def sample(policy: PreTrainedModel, **changes: Any) -> Sampled:
    arguments = {
        "completions_per_prompt": 4,
        "max_completion_tokens": BUDGET,
        "temperature": 0.6,
        "stop_token_ids": [EOS, 20],
        "pad_token_id": PAD,
        "seed": 3,
        "with_entropy": True,
    }
    sampler = HFSampler(changes.pop("batch_size", 0), changes.pop("report_logprobs", False))
    return sampler.sample(policy, changes.pop("prompts", PROMPTS), **{**arguments, **changes})


def greedy_by_hand(policy: PreTrainedModel, prompt: list[int], stop: list[int]) -> list[int]:
    """Argmax of a whole forward pass for each token: no padding, no cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + BUDGET and not set(ids[len(prompt) :]) & set(stop):
        ids.append(int(policy(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def token_of_some_but_not_all(completions: list[list[int]]) -> int:
    """A token before the last of one completion that another lacks."""
    early = {token for completion in completions for token in completion[:-1]}
    return min(t for t in early if not all(t in completion for completion in completions))


def counted(rollouts: Sampled) -> list[list[int]]:
    """The completion tokens that count, for each row."""
    pairs = zip(rollouts.input_ids, rollouts.completion_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


@pytest.fixture
def policy(tiny_llama: Path) -> PreTrainedModel:
    return load_policy(str(tiny_llama))


@pytest.mark.parametrize("batch_size", [0, 1, 2])
def test_greedy_equals_argmax_by_hand_in_any_chunks(tiny_model: Path, batch_size: int):
    policy = load_policy(str(tiny_model))
    unstopped = [greedy_by_hand(policy, prompt, []) for prompt in PROMPTS]
    stop = [token_of_some_but_not_all(unstopped)]
    expected = [greedy_by_hand(policy, prompt, stop) for prompt in PROMPTS]
    greedy = {"temperature": 0.0, "completions_per_prompt": 1, "stop_token_ids": stop}
    rollouts = sample(policy, batch_size=batch_size, **greedy)
    assert counted(rollouts) == expected
    ended = [completion[-1] in stop for completion in expected]
    assert rollouts.truncated.tolist() == [not end for end in ended]
    assert {len(completion) == BUDGET for completion in expected} == {True, False}


def test_the_seed_decides(policy: PreTrainedModel):
    first, again, other = sample(policy), sample(policy), sample(policy, seed=4)
    assert torch.equal(first.input_ids, again.input_ids)
    assert counted(first) != counted(other)
    assert len({tuple(row) for row in counted(first)}) > 3, "rows of a group differ"


def test_no_global_generator_is_touched_or_read(policy: PreTrainedModel):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = sample(policy)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(sample(policy).input_ids, first.input_ids)


def test_rows_of_a_group_are_adjacent_and_prompts_padded_left(policy: PreTrainedModel):
    rollouts = sample(policy)
    width = max(map(len, PROMPTS))
    for row in range(12):
        prompt = PROMPTS[row // 4]
        padding = width - len(prompt)
        assert rollouts.input_ids[row, :width].tolist() == [PAD] * padding + prompt
        assert rollouts.attention_mask[row, :width].tolist() == [False] * padding + [True] * len(
            prompt
        )
    assert not rollouts.completion_mask[:, :width].any()


SHIPPED = {
    "do_sample": True,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.2,
    "typical_p": 0.5,
    "temperature": 0.2,
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 1,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


def save_with_shipped_sampling(folder: Path, target: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config = GenerationConfig(**SHIPPED)
    model.save_pretrained(target)
    return target


LONGEST_FIRST = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7]  # rows of PROMPTS as they are sampled


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """For each step the log-probabilities [b, V] that tokens are drawn with, and the tokens [b].

    That `draw_tokens` draws from the logits it is given is in functional/test_draws.py.
    """
    steps: list[tuple[Tensor, Tensor]] = []

    def recording(logits: Tensor, uniforms: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
        tokens, entropy = draw_with_entropy(logits, uniforms, temperature=temperature)
        assert torch.equal(tokens, draw_tokens(logits, uniforms, temperature=temperature))
        expected = token_entropy(logits, temperature=temperature)
        torch.testing.assert_close(entropy, expected, rtol=0, atol=1e-5)
        steps.append(((logits / temperature).log_softmax(-1), tokens))
        return tokens, entropy

    monkeypatch.setattr("rlsgd.rollout.generation.draw_with_entropy", recording)
    return steps


def test_token_ids_are_those_that_were_drawn(policy: PreTrainedModel, drawn: list):
    rollouts = sample(policy, stop_token_ids=[])
    tokens = torch.stack([tokens for _, tokens in drawn], 1)
    assert torch.equal(rollouts.input_ids[LONGEST_FIRST, -BUDGET:], tokens)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.5])
def test_tokens_are_drawn_from_the_very_distribution_that_is_scored(
    tiny_model: Path, tmp_path: Path, temperature: float, drawn: list
):
    policy = load_policy(str(save_with_shipped_sampling(tiny_model, tmp_path)))
    rollouts = sample(policy, temperature=temperature, stop_token_ids=[], report_logprobs=True)
    assert all(logprobs.isfinite().all() for logprobs, _ in drawn), "no token is excluded"
    found = torch.zeros(rollouts.input_ids.shape)
    for step, (logprobs, tokens) in enumerate(drawn, -BUDGET):
        found[LONGEST_FIRST, step] = logprobs.gather(1, tokens[:, None]).squeeze(1)
    with torch.no_grad():
        scored, _ = completion_logprobs(policy, rollouts, temperature=temperature)
        elsewhere, _ = completion_logprobs(policy, rollouts, temperature=1.1 * temperature)
    torch.testing.assert_close(found, scored, rtol=0, atol=2e-5)
    assert rollouts.sampler_logprobs is not None
    torch.testing.assert_close(found, rollouts.sampler_logprobs, rtol=0, atol=2e-5)
    assert (found - elsewhere).abs().max() > 0.05, "another temperature is told apart"


def test_a_models_own_generation_settings_are_not_used_and_come_back(
    tiny_llama: Path, tmp_path: Path, policy: PreTrainedModel
):
    folder = save_with_shipped_sampling(tiny_llama, tmp_path)
    shipped = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(sample(shipped).input_ids, sample(policy).input_ids)
    assert shipped.generation_config.repetition_penalty == 1.7


def test_pad_is_eos_counts_the_first_eos_and_no_other(
    tiny_llama: Path, tiny_llama_pad_is_eos: Path
):
    stop = {"stop_token_ids": [EOS, 20], "temperature": 1.5, "completions_per_prompt": 40}
    separate = sample(load_policy(str(tiny_llama)), pad_token_id=PAD, **stop)
    same = sample(load_policy(str(tiny_llama_pad_is_eos)), pad_token_id=EOS, **stop)
    assert counted(same) == counted(separate)
    assert torch.equal(same.truncated, separate.truncated)
    assert torch.equal(same.attention_mask, separate.attention_mask)
    stopped = [row for row in counted(same) if EOS in row]
    assert stopped and all(row.index(EOS) == len(row) - 1 for row in stopped)


def test_masks_by_hand():
    prompts, prompt_mask = left_pad([[5], [6, 7], [6, 7]], EOS, "cpu")
    assert prompts.tolist() == [[EOS, 5], [6, 7], [6, 7]]
    assert prompt_mask.tolist() == [[False, True], [True, True], [True, True]]
    # Row 0 ends with the other stop token 9; row 1 never ends and samples the padding token PAD;
    # row 2 ends with the last token of its budget.
    completions = torch.tensor([[8, 9, EOS, 8], [8, PAD, 8, 8], [8, 8, 8, 9]])
    rollouts = assemble(prompts, prompt_mask, completions, [EOS, 9])
    ids, attended, counts = (
        getattr(rollouts, name).int().tolist()
        for name in ("input_ids", "attention_mask", "completion_mask")
    )
    assert ids == [[EOS, 5, 8, 9, EOS, 8], [6, 7, 8, PAD, 8, 8], [6, 7, 8, 8, 8, 9]]
    assert attended == [[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    assert counts == [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    assert rollouts.truncated.tolist() == [False, True, False]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back_also_when_the_model_fails(
    policy: PreTrainedModel, training: bool, monkeypatch: pytest.MonkeyPatch
):
    modes: list[bool] = []

    forward = policy.forward

    def fail_in_decoding(input_ids: Tensor, **kwargs: Any) -> Any:
        modes.append(policy.training)
        if input_ids.shape[1] == 1:
            raise RuntimeError("out of memory")
        return forward(input_ids=input_ids, **kwargs)

    policy.train(training)
    state, attention = torch.get_rng_state(), ALL_ATTENTION_FUNCTIONS["sdpa"]
    sample(policy)
    assert policy.training is training
    monkeypatch.setattr(policy, "forward", fail_in_decoding)
    with pytest.raises(RuntimeError, match="out of memory"):
        sample(policy)
    assert modes == [False, False]
    assert all(module.training is training for module in policy.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attention


def test_bad_input_is_refused(policy: PreTrainedModel):
    with pytest.raises(ValueError, match=r"--data\.task"):
        sample(policy, prompts=[[5], []])
    with pytest.raises(ValueError, match=r"--model\.sampler\.batch_size"):
        HFSampler(-1)
