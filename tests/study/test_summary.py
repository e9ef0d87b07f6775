import math

import pytest

from rlsgd.study.scores import SCORES
from rlsgd.study.summary import (
    T_QUANTILES,
    best_rate,
    mean_interval,
    paired_difference,
    representatives,
    summarise,
    sweeps,
)


def run(name, seed, accuracy, *, reward=0.5, rate=0.1, sweep=None, status="finished"):
    return {
        "name": name,
        "sweep": sweep,
        "learning_rate": rate,
        "seed": seed,
        "status": status,
        "reward": {"first": 0.0, "last": reward},
        "score": {"base": 0.0, "final": accuracy},
    }


def test_the_interval_by_hand():
    estimate = mean_interval([0.5, 0.7, 0.9])
    # --- Hand calculation --- s = sqrt((0.04 + 0 + 0.04) / 2) = 0.2; t(2) = 4.303
    assert estimate.mean == pytest.approx(0.7)
    assert estimate.half_width == pytest.approx(4.303 * 0.2 / math.sqrt(3))
    assert estimate.num_seeds == 3


def test_one_seed_has_no_interval():
    assert mean_interval([0.5]).half_width is None


def test_many_seeds_keep_the_last_quantile():
    values = [0.0, 1.0] * 50
    deviation = math.sqrt(100 * 0.25 / 99)
    assert mean_interval(values).half_width == pytest.approx(2.042 * deviation / 10)


@pytest.mark.parametrize("freedom", range(1, 31))
def test_the_quantiles_leave_a_fortieth_above_them(freedom):
    def density(x: float) -> float:
        scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2)
        return scale / math.sqrt(freedom * math.pi) * (1 + x * x / freedom) ** (-(freedom + 1) / 2)

    def share_below(t: float) -> float:
        width = t / 2000  # Simpson's rule on [0, t]
        inner = sum((4 if i % 2 else 2) * density(i * width) for i in range(1, 2000))
        return 0.5 + width / 3 * (density(0) + inner + density(t))

    quantile = T_QUANTILES[freedom - 1]
    assert share_below(quantile - 0.00051) < 0.975 < share_below(quantile + 0.00051)


def test_means_leave_out_what_did_not_finish():
    (arm,) = summarise([run("a", 0, 0.5), run("a", 1, 0.7), run("a", 2, 0.0, status="diverged")])
    assert arm.mean("score", "final") == pytest.approx(0.6)


def test_a_number_that_one_seed_lacks_has_no_mean():
    (arm,) = summarise([run("a", 0, 0.5), run("a", 1, None)])
    assert arm.estimate("score", "final") is None


def test_differences_are_paired_by_seed():
    base, arm = summarise(
        [
            *(run("base", seed, value) for seed, value in enumerate([0.2, 0.5, 0.8, 0.1])),
            *(run("arm", seed, value) for seed, value in enumerate([0.3, 0.7, 0.9])),
            run("arm", 3, 0.0, status="diverged"),
        ]
    )
    estimate = paired_difference(arm, base)
    # --- Hand calculation --- 0.1, 0.2, 0.1: mean 0.4 / 3, s = sqrt(0.02 / 3 / 2)
    assert estimate is not None
    assert estimate.num_seeds == 3
    assert estimate.mean == pytest.approx(0.4 / 3)
    assert estimate.half_width == pytest.approx(4.303 * math.sqrt(0.02 / 3 / 2) / math.sqrt(3))


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({0.1: [(0.5, 0.5)], 0.01: [(0.6, 0.1)]}, 0.01),  # accuracy first
        ({0.1: [(0.5, 0.5)], 0.01: [(0.5, 0.4)]}, 0.1),  # then reward
        ({0.1: [(0.5, 0.5)], 0.01: [(0.5, 0.5)]}, 0.01),  # then the smaller rate
        ({0.1: [(0.9, 0.9), None], 0.01: [(0.5, 0.5), (0.5, 0.5)]}, 0.01),  # never a diverged one
        ({0.1: [None]}, None),
    ],
)
def test_the_best_rate(rates, best):
    runs = [
        run(
            f"sgd-{rate}",
            seed,
            ending[0] if ending else 0.99,
            reward=ending[1] if ending else 0.99,
            rate=rate,
            sweep="sgd",
            status="finished" if ending else "diverged",
        )
        for rate, endings in rates.items()
        for seed, ending in enumerate(endings)
    ]
    (found,) = [best_rate(arms, SCORES["accuracy"]) for arms in sweeps(summarise(runs)).values()]
    assert (found and found["learning_rate"]) == best


def test_the_best_rate_of_a_loss_is_the_lowest():
    arms = summarise([run("a", 0, 3.0, rate=1, sweep="x"), run("b", 0, 2.0, rate=2, sweep="x")])
    best = best_rate(sweeps(arms)["x"], SCORES["loss"])
    assert best is not None and best["name"] == "b"


def test_a_sweep_is_represented_by_its_best_rate_in_the_order_of_the_file():
    arms = summarise(
        [
            run("sgd-lr1", 0, 0.5, rate=1, sweep="sgd"),
            run("sgd-lr2", 0, 0.7, rate=2, sweep="sgd"),
            run("adamw", 0, 0.6),
        ]
    )
    assert [arm["name"] for arm in representatives(arms, SCORES["accuracy"])] == [
        "sgd-lr2",
        "adamw",
    ]
