"""Comparison at the same value of a growing metric."""

import json

import pytest

from rlsgd.study.matched import crossing

SGD = {"name": "sgd", "optimizer": "torch.optim.SGD", "learning_rate": 0.01}


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (2.0, 10.0),  # the first measured epoch
        (3.0, 15.0),  # half way between two
        (4.0, 20.0),
        (5.0, 35.0),  # epoch 3 is not in the curve: 4 -> 6 between epochs 2 and 4, half way
        (6.0, 50.0),
        (1.0, None),  # before anything was measured
        (7.0, None),  # never reached
    ],
)
def test_a_curve_is_linear_between_epochs_that_both_measured(at, expected):
    path = {1: 2.0, 2: 4.0, 3: 4.5, 4: 6.0}
    assert crossing(path, {1: 10.0, 2: 20.0, 4: 50.0, 9: 0.0}, at) == expected


def test_a_path_that_falls_back_counts_where_it_first_arrived():
    path = {1: 1.0, 2: 3.0, 3: 2.0, 4: 5.0}
    assert crossing(path, {1: 0.0, 2: 10.0, 3: 20.0, 4: 30.0}, 2.5) == 7.5


def test_arms_are_compared_at_the_largest_value_that_all_reached(write_study, run_study, tmp_path):
    # the fake's unchanged share goes 0.9 -> 0.8 while its own metric of distance grows by its rate
    arms = [SGD | {"name": "near", "learning_rate": 0.1}, SGD | {"name": "far"}]
    arms[1]["learning_rate"] = 0.2
    path = write_study(arms=arms, seeds=[0], match="distance")
    assert run_study(path) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    # --- Hand calculation --- the fake's distance is rate, then 3 * rate: 0.1, 0.3 and 0.2, 0.6.
    # All reached 0.3; the far arm passed it a quarter of the way from epoch 1 to 2.
    assert results["study"]["matched"] == {"column": "distance", "at": pytest.approx(0.3)}
    near, far = (run["matched"] for run in results["arms"])
    assert near["epoch"] == pytest.approx(2.0)
    assert far["epoch"] == pytest.approx(1.25)
    assert near["update/unchanged_bf16"] == pytest.approx(0.8)
    assert far["update/unchanged_bf16"] == pytest.approx(0.875)
    report = (tmp_path / "out/report.md").read_text()
    section = report.partition("## At the same distance")[2].partition("\n## ")[0]
    assert "| far | 1.2 | 55.0 | 87.50 | n/a |" in section
    assert (tmp_path / "out/plots/matched.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_metric_there_is_nothing_to_match(write_study, run_study, tmp_path):
    assert run_study(write_study(arms=[SGD], seeds=[0], match="absent")) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["study"]["matched"] is None
    assert "At the same" not in (tmp_path / "out/report.md").read_text()
