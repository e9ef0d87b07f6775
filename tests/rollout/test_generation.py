"""Generation against transformers' own, by counts of what the model is fed, and by statistics."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma3TextConfig, Lfm2Config, PreTrainedModel

from rlsgd.core.types import Sampled
from rlsgd.models.loading import load_policy
from rlsgd.models.scoring import completion_logprobs
from rlsgd.rollout.reading import prove_sampling
from rlsgd.rollout.sampler import HFSampler, left_pad
from tests.helpers.tiny_models import EOS, LLAMA, PAD, save_tiny

PROMPTS = [[14], [5, 9, 12, 30, 7, 8, 21], [33, 2, 19], [40, 41]]
STOPS = [EOS, *range(20, 26)]
BUDGET = 12


def sample(policy: PreTrainedModel, *, batch_size: int = 0, **changes: Any) -> Sampled:
    arguments = {
        "completions_per_prompt": 3,
        "max_completion_tokens": BUDGET,
        "temperature": 0.9,
        "stop_token_ids": STOPS,
        "pad_token_id": PAD,
        "seed": 3,
    }
    prompts = changes.pop("prompts", PROMPTS)
    sampler = HFSampler(batch_size, report_logprobs=True)
    return sampler.sample(policy, prompts, **{**arguments, **changes})


@pytest.fixture(scope="module")
def tiny_gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer that sees 4 tokens, then one that sees all."""
    config = Gemma3TextConfig(
        **LLAMA,
        pad_token_id=PAD,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    return save_tiny(tmp_path_factory.mktemp("tiny") / "gemma3", config)


@pytest.fixture(scope="module")
def tiny_lfm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution over tokens, whose cache is a state without length, then attention."""
    config = Lfm2Config(
        **{**LLAMA, "num_hidden_layers": 2},
        pad_token_id=PAD,
        layer_types=["conv", "full_attention"],
    )
    return save_tiny(tmp_path_factory.mktemp("tiny") / "lfm2", config)


@pytest.fixture(params=["llama", "llama_untied", "qwen3", "gpt2", "gemma3", "lfm2"])
def policy(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Every architecture in float64, where rounding turns no choice."""
    return load_policy(str(request.getfixturevalue(f"tiny_{request.param}"))).double()


@pytest.fixture
def llama(tiny_llama: Path) -> PreTrainedModel:
    return load_policy(str(tiny_llama)).double()


@contextmanager
def fed(policy: PreTrainedModel) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the token ids that the model is called with."""
    prove_sampling(policy)
    shapes: list[tuple[int, ...]] = []
    embedding: Any = policy.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    try:
        yield shapes
    finally:
        hook.remove()


def counted(rollouts: Sampled) -> list[list[int]]:
    pairs = zip(rollouts.input_ids, rollouts.completion_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


@pytest.mark.parametrize("batch_size", [0, 2])
def test_greedy_equals_transformers_generate(policy: PreTrainedModel, batch_size: int):
    ids, mask = left_pad(PROMPTS, PAD, "cpu")

    def theirs(stops: list[int] | None) -> Tensor:
        return policy.generate(  # pyright: ignore[reportCallIssue]
            inputs=ids,
            attention_mask=mask.long(),
            max_new_tokens=BUDGET,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=PAD,
        )

    policy.eval()
    policy.generation_config.eos_token_id = None
    unstopped = theirs(None)[:, -BUDGET:]
    # the tokens with which some rows begin and that the longest prompt's lacks
    stops = sorted({*unstopped[:, :3].flatten().tolist()} - {*unstopped[1].tolist()})
    ours = sample(
        policy,
        temperature=0.0,
        completions_per_prompt=1,
        batch_size=batch_size,
        stop_token_ids=stops,
    )
    assert torch.equal(ours.input_ids, theirs(stops))
    lengths = ours.completion_mask.sum(1)
    assert lengths[1] == BUDGET, "past the window"
    assert lengths.min() < 4


def test_groups_are_drawn_from_the_softmax(llama: PreTrainedModel):
    """Chi-square of the first token, and of the second after the most frequent first one.

    The seed is fixed, so the outcome is; a right sampler would fail for one seed in 1000.
    """
    temperature = 1.5
    rollouts = sample(
        llama,
        prompts=[[5, 9, 12], [7]],
        completions_per_prompt=3000,
        max_completion_tokens=2,
        temperature=temperature,
        stop_token_ids=[],
    )
    first, second = rollouts.input_ids[:3000, -2:].T
    common = int(first.mode().values)
    with torch.no_grad():
        logits = llama(input_ids=torch.tensor([[5, 9, 12, common]])).logits[0] / temperature
    assert p_value(first, logits[-2].softmax(-1)) > 1e-3
    after = second[first == common]
    assert len(after) > 200
    assert p_value(after, logits[-1].softmax(-1)) > 1e-3
    hotter = (logits * temperature / (temperature + 0.5)).softmax(-1)
    assert p_value(first, hotter[-2]) < 1e-3, "another temperature is told apart"


def p_value(drawn: Tensor, probabilities: Tensor) -> float:
    """Of Pearson's test; tokens expected less than 5 times are one class."""
    expected = probabilities * len(drawn)
    observed = torch.bincount(drawn, minlength=len(expected)).double()
    often = expected >= 5
    expected, observed = (
        torch.cat([values[often], values[~often].sum()[None]]) for values in (expected, observed)
    )
    statistic = ((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def test_reported_logprobs_are_the_trainers(policy: PreTrainedModel):
    rollouts = sample(policy)
    with torch.no_grad():
        scored, _ = completion_logprobs(policy.eval(), rollouts, temperature=0.9)
    lengths = rollouts.completion_mask.sum(1)
    assert lengths.min() < lengths.max(), "some rows left the batch before others"
    assert rollouts.sampler_logprobs is not None and scored.min() < -1
    # computed in float64, reported in float32
    torch.testing.assert_close(rollouts.sampler_logprobs, scored.float(), rtol=1e-6, atol=1e-6)


def test_neither_batches_nor_order_nor_leaving_rows_change_completions(
    policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
):
    together = sample(policy)
    for batch_size in (1, 2, 3, 5, 7, 100):
        rollouts = sample(policy, batch_size=batch_size)
        assert torch.equal(rollouts.input_ids, together.input_ids)
        assert torch.equal(rollouts.attention_mask, together.attention_mask)
        torch.testing.assert_close(rollouts.sampler_logprobs, together.sampler_logprobs)

    def all_stay(alive: list[bool]) -> list[int]:
        return list(range(len(alive)))

    monkeypatch.setattr("rlsgd.rollout.generation._packed", all_stay)
    with fed(policy) as shapes:
        undiminished = sample(policy)
    assert {rows for rows, _ in shapes[1:]} == {12}
    assert counted(undiminished) == counted(together)


@pytest.mark.parametrize("every", [2, 5, 16])
def test_looking_at_tokens_now_and_then_changes_none(
    policy: PreTrainedModel, every: int, monkeypatch: pytest.MonkeyPatch
):
    """Rows that ended between two looks were read on, in a batch of another size."""
    for temperature in (0.9, 0.0):
        one = sample(policy, temperature=temperature, with_entropy=True)
        lengths = one.completion_mask.sum(1)
        assert temperature == 0 or len({*(lengths % every).tolist()}) > 1
        with monkeypatch.context() as patch, fed(policy) as shapes:
            patch.setattr("rlsgd.rollout.generation._look_every", lambda device: every)
            block = sample(policy, temperature=temperature, with_entropy=True)
        assert torch.equal(block.input_ids, one.input_ids)
        assert torch.equal(block.attention_mask, one.attention_mask)
        for name in ("sampler_logprobs", "sampled_entropy"):
            mine, theirs = getattr(block, name), getattr(one, name)
            assert (mine is None) == (theirs is None) == (temperature == 0)
            if mine is not None:
                torch.testing.assert_close(mine, theirs)
                assert not mine[~block.completion_mask].any()
        assert len(shapes) <= BUDGET
    rows = [rows for rows, width in shapes[1:] if width == 1]
    assert all(n == rows[i - i % every] for i, n in enumerate(rows) if i % every < every - 1)


def test_entropy_is_noted_where_it_is_asked_for(llama: PreTrainedModel):
    assert sample(llama).sampled_entropy is None
    noted = sample(llama, with_entropy=True)
    with torch.no_grad():
        _, entropy = completion_logprobs(llama.eval(), noted, temperature=0.9, with_entropy=True)
    assert noted.sampled_entropy is not None and entropy is not None
    torch.testing.assert_close(noted.sampled_entropy, entropy.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [0, 12, 7, 3])
def test_a_prompt_is_read_once_for_its_group(llama: PreTrainedModel, batch_size: int):
    prompts = [[token, *prompt] for token, prompt in enumerate(PROMPTS, 50)]  # 2 tokens at least
    with fed(llama) as shapes:
        sample(llama, prompts=prompts, batch_size=batch_size)
    assert sum(rows for rows, width in shapes if width > 1) == len(prompts)
    with fed(llama) as shapes:  # a group that is split is read for each part
        sample(llama, prompts=prompts, batch_size=2)
    assert sum(rows for rows, width in shapes if width > 1) == 8


def test_no_token_is_computed_for_a_finished_row(llama: PreTrainedModel):
    with fed(llama) as shapes:
        rollouts = sample(llama)
    lengths = rollouts.completion_mask.sum(1)
    assert shapes[0] == (len(PROMPTS), 7)
    assert all(width == 1 for _, width in shapes[1:])
    unfinished = [int((lengths > token).sum()) for token in range(1, int(lengths.max()))]
    assert [rows for rows, _ in shapes[1:]] == unfinished  # none is fed its last token
    assert len(set(unfinished)) > 3


def test_batches_have_prompts_of_similar_length(llama: PreTrainedModel):
    with fed(llama) as shapes:
        sample(llama, batch_size=6, max_completion_tokens=1)
    assert shapes == [(2, 7), (2, 2)], "the longest two, then the others"


def test_one_token_needs_no_second_pass(llama: PreTrainedModel):
    with fed(llama) as shapes:
        rollouts = sample(llama, max_completion_tokens=1)
    assert len(shapes) == 1
    assert rollouts.input_ids.shape == (12, 8)
