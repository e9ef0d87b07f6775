"""A packed document is worth what it is alone: its logits, and its part of the gradient."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from rlsgd.data.packing import Document, batch_of_rows, first_fit, restarting_positions
from rlsgd.models.scoring import completion_logprobs

PAD = 0
ONE = torch.tensor(1.0)
# one of them a single token, which has the position 0 right after another 0
DOCUMENTS = [
    Document([5, 9, 33, 2, 7, 61], 4),
    Document([9], 0),
    Document([9, 5, 33], 2),
    Document([40, 41, 42, 43, 44], 1),
]


def test_first_fit_by_hand():
    # longest first: 9 is alone in its row; 5 and 3 fill the next; 4, 3 and 1 the last
    assert first_fit([3, 5, 1, 4, 3, 9], 8) == [[5], [1, 0], [3, 4, 2]]
    assert first_fit([2, 2, 2], 4) == [[0, 1], [2]]
    assert first_fit([7], 4) == [[0]]


def test_positions_restart_at_every_start():
    starts = torch.tensor([[1, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    assert restarting_positions(starts).tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]


def test_rows_by_hand():
    batch = batch_of_rows(
        [DOCUMENTS[1:3], DOCUMENTS[:1]], pad_token_id=PAD, packed=True, denominator=ONE
    )
    assert batch.input_ids.tolist() == [[9, 9, 5, 33, PAD, PAD], [5, 9, 33, 2, 7, 61]]
    assert batch.completion_mask.long().tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]
    assert batch.attention_mask.long().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert batch.position_ids is not None
    # the padding is a document of its own: no row's last document sees it, or is seen by it
    assert batch.position_ids.tolist() == [[0, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_llama_untied", "tiny_qwen3"])
def test_packed_equals_each_document_alone(model, attention, request):
    folder = request.getfixturevalue(model)
    policy = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, attention_dropout=0.0
    ).double()
    rows = [[DOCUMENTS[3], DOCUMENTS[1], DOCUMENTS[0]], [DOCUMENTS[2], DOCUMENTS[0]]]
    batch = batch_of_rows(rows, pad_token_id=PAD, packed=True, denominator=ONE)
    logprobs, _ = completion_logprobs(policy, batch, temperature=1.0)
    logprobs.sum().backward()
    packed = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for number, row in enumerate(rows):
        end = 0
        for ids, scored in row:
            end += len(ids)
            if not scored:
                continue
            tokens = torch.tensor([ids])
            logits = policy(tokens, use_cache=False).logits[0, -scored - 1 : -1]
            alone = -cross_entropy(logits, tokens[0, -scored:], reduction="none")
            # float64: any token seen that should not be shows in the first digits
            torch.testing.assert_close(
                logprobs[number, end - scored : end], alone, rtol=1e-10, atol=1e-10
            )
            total = total + alone.sum()
    total.backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-9, atol=1e-10, msg=name)
    assert int(batch.completion_mask.sum()) == 4 + 1 + 2 + 4
