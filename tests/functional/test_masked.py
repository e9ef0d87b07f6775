import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsgd.functional.aggregation import AGGREGATION_MODES, aggregate, aggregation_count
from rlsgd.functional.masked import masked_mean, masked_whiten

BUDGET = 8
MASK = torch.tensor(
    [[0, 1, 1, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]], dtype=torch.bool
)
PER_TOKEN = torch.tensor(
    [
        [9.0, 1.0, 2.0, 3.0, 6.0],  # 4 tokens, sum 12, mean 3
        [9.0, 10.0, 9.0, 9.0, 9.0],  # 1 token, 10
        [9.0, 9.0, 9.0, 9.0, 9.0],  # none
        [9.0, -4.0, 1.0, 9.0, 9.0],  # 2 tokens, sum -3, mean -1.5
    ],
    dtype=torch.float64,
)
BY_HAND = {
    "token-mean": (7, (12 + 10 - 3) / 7),
    "seq-mean-token-mean": (3, (3 + 10 - 1.5) / 3),
    "seq-mean-token-sum": (3, (12 + 10 - 3) / 3),
    "seq-mean-token-sum-norm": (3, (12 + 10 - 3) / 3 / BUDGET),
}


def whole_batch(per_token, mask, mode):
    return aggregate(
        per_token,
        mask,
        mode=mode,
        denominator=aggregation_count(mask, mode),
        max_completion_tokens=BUDGET,
    )


def ragged_batch(rows=8, width=12, features=3):
    """Rows of 1 to `width` tokens; later rows tend to a larger loss."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, width, features, generator=generator, dtype=torch.float64)
    inputs = inputs + torch.linspace(0, 2, rows, dtype=torch.float64)[:, None, None]
    lengths = torch.tensor([12, 1, 7, 2, 11, 3, 1, 5])
    mask = torch.arange(width) < lengths[:, None]
    parameter = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    return inputs, mask, parameter


def loss_and_gradient(inputs, mask, parameter, share_of):
    parameter.grad = None
    loss = torch.zeros((), dtype=torch.float64)
    for part_inputs, part_mask in zip(inputs, mask, strict=True):
        share = share_of((part_inputs @ parameter).exp(), part_mask)
        share.backward()
        loss = loss + share.detach()
    return loss, parameter.grad.clone()


def test_modes_are_the_four_documented_ones():
    assert set(AGGREGATION_MODES) == set(BY_HAND)


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
def test_aggregation_by_hand(mode):
    count, loss = BY_HAND[mode]
    assert aggregation_count(MASK, mode).item() == count
    assert whole_batch(PER_TOKEN, MASK, mode).item() == pytest.approx(loss, rel=1e-15)


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 1e30])
def test_masked_values_reach_neither_value_nor_gradient(mode, filler):
    filled = torch.where(MASK, PER_TOKEN, filler).requires_grad_()
    clean = torch.where(MASK, PER_TOKEN, 0.0).requires_grad_()
    losses = [whole_batch(per_token, MASK, mode) for per_token in (filled, clean)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    assert torch.equal(filled.grad, clean.grad)
    assert torch.equal(filled.grad[~MASK], torch.zeros(20 - 7, dtype=torch.float64))


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_microbatches_share_one_denominator(mode, parts):
    inputs, mask, parameter = ragged_batch()
    expected = loss_and_gradient([inputs], [mask], parameter, lambda x, m: whole_batch(x, m, mode))
    masks = mask.chunk(parts)
    denominator = torch.stack([aggregation_count(m, mode) for m in masks]).sum()
    split = loss_and_gradient(
        inputs.chunk(parts),
        masks,
        parameter,
        lambda x, m: aggregate(
            x, m, mode=mode, denominator=denominator, max_completion_tokens=BUDGET
        ),
    )
    torch.testing.assert_close(split, expected, rtol=1e-14, atol=0)


def test_mean_of_microbatch_means_is_another_loss():
    inputs, mask, parameter = ragged_batch()
    exact, exact_gradient = loss_and_gradient(
        [inputs], [mask], parameter, lambda x, m: whole_batch(x, m, "token-mean")
    )
    naive, naive_gradient = loss_and_gradient(
        inputs.chunk(4),
        mask.chunk(4),
        parameter,
        lambda x, m: whole_batch(x, m, "token-mean") / 4,
    )
    assert abs(naive / exact - 1) > 0.05
    assert ((naive_gradient / exact_gradient - 1).abs() > 0.05).all()


def test_token_budget_norm_is_constant_under_microbatching_and_width():
    """A single token of loss 1 in B rows is 1 / (B * budget), whatever the padding."""
    for rows, width in ((1, 3), (4, 3), (4, 50)):
        mask = torch.zeros(rows, width, dtype=torch.bool)
        mask[:, 0] = True
        per_token = torch.zeros(rows, width)
        per_token[0, 0] = 1.0
        loss = whole_batch(per_token, mask, "seq-mean-token-sum-norm")
        assert loss.item() == 1 / (rows * BUDGET)


@pytest.mark.parametrize("mode", AGGREGATION_MODES)
def test_batch_without_tokens_is_zero_with_zero_gradient(mode):
    per_token = torch.full((2, 3), float("nan"), requires_grad=True)
    loss = whole_batch(per_token, torch.zeros(2, 3, dtype=torch.bool), mode)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(per_token.grad, torch.zeros(2, 3))


def test_fractional_denominator_is_used_as_it_is():
    loss = aggregate(
        torch.tensor([[3.0]]),
        torch.tensor([[True]]),
        mode="token-mean",
        denominator=torch.tensor(0.5),
    )
    assert loss.item() == 6.0


batches = st.integers(1, 5).flatmap(
    lambda rows: st.integers(1, 6).flatmap(
        lambda width: st.tuples(
            st.lists(
                st.lists(
                    st.tuples(st.floats(-100, 100), st.booleans()), min_size=width, max_size=width
                ),
                min_size=rows,
                max_size=rows,
            ),
            st.permutations(range(rows)),
            st.integers(0, 4),
            st.integers(0, 4),
        )
    )
)


@settings(max_examples=50, deadline=None)
@given(batch=batches, mode=st.sampled_from(AGGREGATION_MODES))
def test_row_order_and_padding_do_not_matter(batch, mode):
    rows, permutation, left, right = batch
    per_token = torch.tensor([[value for value, _ in row] for row in rows], dtype=torch.float64)
    mask = torch.tensor([[counted for _, counted in row] for row in rows])
    expected = whole_batch(per_token, mask, mode)
    padded = torch.nn.functional.pad(per_token, (left, right), value=float("nan"))
    padded_mask = torch.nn.functional.pad(mask, (left, right), value=False)
    for values, counted in (
        (per_token[list(permutation)], mask[list(permutation)]),
        (padded, padded_mask),
    ):
        torch.testing.assert_close(
            whole_batch(values, counted, mode), expected, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("call", [aggregation_count, whole_batch])
def test_unknown_mode_names_the_flag_and_the_modes(call):
    arguments = (MASK, "mean") if call is aggregation_count else (PER_TOKEN, MASK, "mean")
    with pytest.raises(ValueError, match=r"^aggregation 'mean'.*token-mean, seq-mean"):
        call(*arguments)


@pytest.mark.parametrize("budget", [None, 0, -1])
def test_token_budget_is_required_by_the_norm(budget):
    with pytest.raises(ValueError, match=r"set max_completion_tokens to a positive"):
        aggregate(
            PER_TOKEN,
            MASK,
            mode="seq-mean-token-sum-norm",
            denominator=torch.tensor(3),
            max_completion_tokens=budget,
        )


def test_masked_mean_by_hand():
    assert masked_mean(PER_TOKEN, MASK).item() == pytest.approx(19 / 7, rel=1e-15)
    expected = torch.tensor([3.0, 10.0, 0.0, -1.5], dtype=torch.float64)
    assert torch.equal(masked_mean(PER_TOKEN, MASK, dim=1), expected)
    # Columns: nothing, (1 + 10 - 4) / 3, (2 + 1) / 2, 3 / 1, 6 / 1.
    expected = torch.tensor([0.0, 7 / 3, 1.5, 3.0, 6.0], dtype=torch.float64)
    assert torch.equal(masked_mean(PER_TOKEN, MASK, dim=0), expected)


def test_masked_mean_ignores_masked_nan_and_counts_true():
    values = torch.tensor([1.0, float("nan"), 3.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False, True]))
    mean.backward()
    assert mean.item() == 2.0
    assert torch.equal(values.grad, torch.tensor([0.5, 0.0, 0.5]))
    flags = torch.tensor([True, True, False, True])
    assert masked_mean(flags, torch.tensor([True, True, True, False])).item() == pytest.approx(
        2 / 3
    )


def test_masked_mean_of_bfloat16_accumulates_in_float32():
    # 257 ones: bfloat16 cannot count above 256 in steps of 1.
    ones = torch.ones(257, dtype=torch.bfloat16)
    mean = masked_mean(ones * 257 / 256, torch.ones(257, dtype=torch.bool))
    assert mean.dtype == torch.float32
    assert mean.item() == (ones * 257 / 256)[0].item()


def test_masked_whiten_by_hand():
    values = torch.tensor([[1.0, float("nan"), 3.0], [5.0, 7.0, 1e9]], dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    # Mean 4, population variance (9 + 1 + 1 + 9) / 4 = 5.
    by_hand = torch.tensor([[-3.0, 0.0, -1.0], [1.0, 3.0, 0.0]], dtype=torch.float64) / 5**0.5
    whitened = masked_whiten(values, mask, eps=0.0)
    torch.testing.assert_close(whitened, by_hand, rtol=1e-14, atol=0)


def test_masked_whiten_of_one_value_is_zero():
    whitened = masked_whiten(torch.tensor([[3.0, 9.0]]), torch.tensor([[True, False]]))
    assert torch.equal(whitened, torch.zeros(1, 2))
