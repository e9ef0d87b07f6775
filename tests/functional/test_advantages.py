import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsgd.functional.advantages import group_relative, leave_one_out, zero_variance_groups
from rlsgd.functional.critic import gae, terminal_rewards

ONE_OF_FOUR = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        # Mean 1/4; squares 9/16 + 3/16 = 3/4: sample std 1/2, population std sqrt(3)/4.
        ({"eps": 0.0}, [1.5, -0.5, -0.5, -0.5]),
        ({"eps": 0.5}, [0.75, -0.25, -0.25, -0.25]),
        ({"eps": 0.0, "ddof": 0}, [3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]),
        ({"scale": False}, [0.75, -0.25, -0.25, -0.25]),
    ],
)
def test_group_relative_by_hand(options, by_hand):
    advantages = group_relative(ONE_OF_FOUR, 4, **options)
    torch.testing.assert_close(
        advantages, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-15, atol=0
    )


def test_groups_are_adjacent_rows():
    rewards = torch.tensor([1.0, 0.0, 10.0, 30.0])
    by_hand = torch.tensor([0.5, -0.5, -10.0, 10.0])
    assert torch.equal(group_relative(rewards, 2, scale=False), by_hand)


def test_leave_one_out_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 5.0, 3.0, 1.0])
    # Others' means 0, 1/2, 1/2 and 2, 3, 4.
    by_hand = torch.tensor([1.0, -0.5, -0.5, 3.0, 0.0, -3.0])
    assert torch.equal(leave_one_out(rewards, 3), by_hand)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -7.7])
@pytest.mark.parametrize("group_size", [2, 3, 7])
def test_equal_rewards_give_exactly_zero(reward, group_size):
    """In float32 the mean of 0.1, 0.1, 0.1 is not 0.1, and dividing by eps would show it."""
    rewards = torch.cat([torch.full((group_size,), reward), torch.arange(group_size).float()])
    for advantages in (
        group_relative(rewards, group_size),
        group_relative(rewards, group_size, scale=False),
        leave_one_out(rewards, group_size),
    ):
        assert torch.equal(advantages[:group_size], torch.zeros(group_size))
        assert advantages[group_size] < 0 < advantages[-1]
    assert zero_variance_groups(rewards, group_size).tolist() == [True, False]


def test_nearly_equal_rewards_keep_their_signal():
    rewards = torch.tensor([1.0, 1.0 + 2**-20])
    assert zero_variance_groups(rewards, 2).tolist() == [False]
    assert torch.equal(leave_one_out(rewards, 2), torch.tensor([-(2**-20), 2**-20]))


def test_integer_rewards_are_averaged_as_numbers():
    advantages = group_relative(torch.tensor([1, 0]), 2, scale=False)
    assert torch.equal(advantages, torch.tensor([0.5, -0.5]))


@pytest.mark.parametrize("estimate", [group_relative, leave_one_out])
def test_a_group_of_one_is_refused(estimate):
    with pytest.raises(ValueError, match=r"^group_size 1 .*2 or more"):
        estimate(ONE_OF_FOUR, 1)


@pytest.mark.parametrize("estimate", [group_relative, leave_one_out, zero_variance_groups])
@pytest.mark.parametrize("group_size", [3, 0, 8])
def test_incomplete_groups_are_refused(estimate, group_size):
    with pytest.raises(ValueError, match=rf"^group_size {group_size} does not divide the 4"):
        estimate(ONE_OF_FOUR, group_size)


@pytest.mark.parametrize("estimate", [group_relative, leave_one_out, zero_variance_groups])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rewards_that_are_not_finite_are_refused(estimate, bad):
    with pytest.raises(ValueError, match=r"rows \[1, 3\] are not finite"):
        estimate(torch.tensor([1.0, bad, 0.0, bad]), 2)


def test_terminal_rewards_land_on_the_last_unmasked_token():
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    by_hand = torch.tensor([[0.0, 0, 5, 0], [0, 0, 0, 7], [0, 0, 0, 0], [11, 0, 0, 0]])
    assert torch.equal(terminal_rewards(torch.tensor([5.0, 7.0, 9.0, 11.0]), mask), by_hand)


def test_gae_by_hand():
    # Discount 1/2 and decay 1/2: a trace of 1/4.
    rewards = torch.tensor([[0.0, 0.0, 4.0]])
    values = torch.tensor([[1.0, 2.0, 3.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    # Errors: 0 + 2/2 - 1 = 0; 0 + 3/2 - 2 = -1/2; 4 + 0 - 3 = 1.
    # Advantages from the back: 1; -1/2 + 1/4 = -1/4; 0 - 1/16.
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert torch.equal(advantages, torch.tensor([[-1 / 16, -1 / 4, 1.0]]))
    assert torch.equal(returns, torch.tensor([[15 / 16, 7 / 4, 4.0]]))
    # Truncated where the next state is worth 8: the last error grows by 8/2 = 4,
    # and the advantages by 4, 4/4, 4/16.
    advantages, _ = gae(
        rewards, values, mask, gamma=0.5, lam=0.5, bootstrap_values=torch.tensor([8.0])
    )
    assert torch.equal(advantages, torch.tensor([[-1 / 16 + 1 / 4, -1 / 4 + 1, 5.0]]))


def test_gae_limits_are_the_return_and_the_one_step_error():
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    values = torch.tensor([[0.5, -1.0, 3.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert torch.equal(returns, torch.tensor([[7.0, 6.0, 4.0]]))
    advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=0.0)
    # 1 - 1 - 0.5; 2 + 3 + 1; 4 - 3.
    assert torch.equal(advantages, torch.tensor([[-0.5, 6.0, 1.0]]))


def test_gae_steps_over_a_gap_and_carries_the_next_value_across():
    # The tokens of test_gae_by_hand with padding around them and a gap after the first.
    nan = float("nan")
    mask = torch.tensor([[0, 1, 0, 0, 1, 1, 0, 0]]).bool()
    for filler in (nan, 1e3, -1e3):
        rewards = torch.tensor([[filler, 0.0, filler, filler, 0.0, 4.0, filler, filler]])
        values = torch.tensor([[filler, 1.0, filler, filler, 2.0, 3.0, filler, filler]])
        advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
        expected = torch.tensor([[0.0, -1 / 16, 0, 0, -1 / 4, 1.0, 0, 0]])
        assert torch.equal(advantages, expected)
        expected = torch.tensor([[0.0, 15 / 16, 0, 0, 7 / 4, 4.0, 0, 0]])
        assert torch.equal(returns, expected)


def gae_as_a_sum(rewards, values, bootstrap, gamma, lam):
    """Advantage t = sum over l of (gamma lam)^l error t+l, over a plain list of tokens."""
    after = [*values, bootstrap][1:]
    errors = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [
        sum((gamma * lam) ** (later - t) * errors[later] for later in range(t, len(errors)))
        for t in range(len(errors))
    ]


@settings(max_examples=40, deadline=None)
@given(
    cells=st.lists(
        st.lists(
            st.tuples(st.booleans(), st.floats(-5, 5), st.floats(-5, 5)), min_size=7, max_size=7
        ),
        min_size=1,
        max_size=3,
    ),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    bootstrap=st.floats(-5, 5),
)
def test_gae_equals_the_sum_over_the_unmasked_tokens_alone(cells, gamma, lam, bootstrap):
    table = torch.tensor(cells, dtype=torch.float64)
    mask = table[..., 0].bool()
    rewards, values = table[..., 1], torch.where(mask, table[..., 2], float("nan"))
    advantages, returns = gae(
        rewards,
        values,
        mask,
        gamma=gamma,
        lam=lam,
        bootstrap_values=torch.full((len(cells),), bootstrap, dtype=torch.float64),
    )
    for row, keep in enumerate(mask):
        expected = torch.tensor(
            gae_as_a_sum(
                rewards[row][keep].tolist(), values[row][keep].tolist(), bootstrap, gamma, lam
            ),
            dtype=torch.float64,
        )
        torch.testing.assert_close(advantages[row][keep], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            returns[row][keep], expected + values[row][keep], rtol=1e-12, atol=1e-12
        )
        assert (advantages[row][~keep] == 0).all() and (returns[row][~keep] == 0).all()


def test_gae_gives_constants():
    values = torch.ones(1, 2, requires_grad=True)
    results = gae(torch.ones(1, 2), values, torch.ones(1, 2).bool(), gamma=1.0, lam=1.0)
    assert [result.requires_grad for result in results] == [False, False]


@pytest.mark.parametrize("name", ["gamma", "lam"])
@pytest.mark.parametrize("number", [-0.1, 1.01, float("nan")])
def test_gae_refuses_discounts_outside_0_to_1(name, number):
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match=rf"^{name} must be between 0 and 1"):
        gae(one, one, one.bool(), **{"gamma": 1.0, "lam": 1.0, name: number})
