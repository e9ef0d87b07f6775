import pytest
import torch

from rlsgd.core.problems import Problem, Prompt
from rlsgd.core.types import Microbatch, Rollouts, Sampled, TokenBatch
from tests.helpers.tiny_models import EOS

PROMPTS = [Prompt(Problem(f"q{i}", f"a{i}"), f"q{i}", [i]) for i in range(3)]


def rollouts() -> Microbatch:
    return Microbatch(
        input_ids=torch.tensor([[0, 0, 5, 6, 1], [0, 7, 8, 9, 1], [0, 0, 4, 3, 0]]),
        attention_mask=torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 0]]).bool(),
        completion_mask=torch.tensor([[0, 0, 0, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]).bool(),
        truncated=torch.tensor([False, True, False]),
        old_logprobs=torch.arange(15.0).view(3, 5),
        rewards=torch.tensor([1.0, 2.0, 3.0]),
        advantages=torch.tensor([-1.0, 0.0, 1.0]),
        denominator=torch.tensor(7.0),
        num_tokens=torch.tensor(4),
        prompts=PROMPTS,
        completions=["x", "yz", "w"],
        metrics={"reward": 2.0},
    )


def test_select_takes_rows_of_tensors_and_lists_in_the_given_order():
    picked = rollouts().select(torch.tensor([2, 0, 2]))
    assert len(picked) == 3
    expected_ids = torch.tensor([[0, 0, 4, 3, 0], [0, 0, 5, 6, 1], [0, 0, 4, 3, 0]])
    assert torch.equal(picked.input_ids, expected_ids)
    assert picked.truncated.tolist() == [False, False, False]
    assert picked.rewards.tolist() == [3.0, 1.0, 3.0]
    assert picked.old_logprobs is not None
    assert picked.old_logprobs[1].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert picked.completions == ["w", "x", "w"]
    assert [prompt.text for prompt in picked.prompts] == ["q2", "q0", "q2"]


def test_select_carries_scalars_and_what_is_absent():
    picked = rollouts().select(torch.tensor([1]))
    assert picked.denominator.item() == 7.0 and picked.num_tokens.item() == 4
    assert picked.metrics == {"reward": 2.0}
    assert picked.ref_logprobs is None and picked.entropy is None


def test_trim_drops_the_columns_that_are_padding_everywhere():
    trimmed = rollouts().trim()
    # columns 0 and 4 are padding in all rows; column 1 holds a token of row 1
    assert trimmed.input_ids.tolist() == [[0, 5, 6], [7, 8, 9], [0, 4, 3]]
    assert trimmed.attention_mask.tolist() == [[False, True, True], [True] * 3, [False, True, True]]
    assert trimmed.completion_mask.sum().item() == 4
    assert trimmed.old_logprobs is not None
    assert trimmed.old_logprobs.tolist() == [[1, 2, 3], [6, 7, 8], [11, 12, 13]]
    assert trimmed.advantages.tolist() == [-1.0, 0.0, 1.0]


def test_trim_keeps_a_token_that_has_the_padding_id():
    batch = TokenBatch(
        input_ids=torch.tensor([[EOS, EOS, EOS, EOS]]),
        attention_mask=torch.tensor([[False, True, True, False]]),
        completion_mask=torch.tensor([[False, False, True, False]]),
    )
    assert batch.trim().input_ids.shape == (1, 2)


def test_to_moves_every_tensor_and_nothing_else():
    batch = rollouts()
    moved = batch.to("meta")
    assert all(
        value.device.type == "meta"
        for value in vars(moved).values()
        if isinstance(value, torch.Tensor)
    )
    assert moved.prompts is batch.prompts and moved.metrics == {"reward": 2.0}
    assert batch.input_ids.device.type == "cpu"


def test_a_stage_keeps_what_the_one_before_has_and_demands_what_it_adds():
    batch = rollouts()
    sampled = Sampled(batch.input_ids, batch.attention_mask, batch.completion_mask, batch.truncated)
    with pytest.raises(TypeError, match="rewards"):
        Rollouts.extending(sampled)
    scored = Rollouts.extending(sampled, rewards=batch.rewards, completions=batch.completions)
    assert scored.input_ids is batch.input_ids and scored.truncated is batch.truncated
    assert scored.completions == ["x", "yz", "w"] and scored.metrics is sampled.metrics
