"""Paired tests: the distribution, the adjustment, and which runs are paired at all."""

import math

import pytest
from scipy import stats

from rlsgd.report.comparisons import compare, holm, p_value, student_p
from rlsgd.report.sources import load_sources
from rlsgd.study.scores import SCORES
from rlsgd.study.summary import Estimate, mean_interval, representatives, summarise
from tests.report.report_data import fit_config, write_run, write_study


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 7, 10, 29, 30])
@pytest.mark.parametrize("t", [0.0, 0.1, -1.0, 2.5, 12.706, 40.0])
def test_student_p_is_scipys(t, freedom):
    # 1 - A(t) loses digits where p is tiny: an absolute tolerance of a few float64 roundings
    assert student_p(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-15)


@pytest.mark.parametrize("number", [2, 3, 5, 40])
def test_p_value_is_that_of_the_t_test_on_the_differences(number):
    differences = [0.3 + 0.1 * math.sin(i) for i in range(number)]
    expected = stats.ttest_1samp(differences, 0.0).pvalue
    found = p_value(mean_interval(differences))
    # the table of quantiles has three decimals and ends at 30 degrees of freedom, and p is
    # computed from the interval: t is exact, beyond 30 degrees p is that of 30 or more
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_p_value_needs_an_interval():
    assert p_value(None) is None
    assert p_value(Estimate(0.5, None, 1)) is None
    assert p_value(mean_interval([0.5, 0.5])) == 0
    assert p_value(mean_interval([0.0, 0.0])) == 1


def test_holm_by_hand():
    # smallest 0.01 * 3, then 0.03 * 2, then 0.04 * 1, which must not fall below the one before
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    # what cannot be tested does not count
    assert holm([0.02, None, 0.6]) == pytest.approx([0.04, None, 0.6])
    assert holm([0.5, 0.7]) == [1.0, 1.0]


def compared(folders, baseline=None):
    runs = [run for source in load_sources([str(f) for f in folders]) for run in source.runs]
    arms = representatives(summarise([run.record for run in runs]), SCORES["accuracy"])
    return compare(arms, runs, baseline)


def test_differences_and_p_by_hand(tmp_path):
    (found,) = compared([write_study(tmp_path / "study")])
    assert (found.arm, found.baseline) == ("sgd", "adamw")
    scored, unchanged = found.differences
    # --- Hand calculation --- 0.02, 0.03, 0.04: mean 0.03, s 0.01, t(2) s / sqrt(3) = 0.02484
    assert scored and (scored.mean, scored.half_width) == pytest.approx((0.03, 0.0248434), abs=1e-6)
    # t = 0.03 / (0.01 / sqrt(3)) = 5.196; with 2 degrees p = 1 - t / sqrt(2 + t^2) = 0.03510
    assert found.p_values[0] == pytest.approx(1 - math.sqrt(27 / 29), abs=1e-12)
    assert unchanged and unchanged.mean == pytest.approx(0.5) and found.p_values[1] == 0


def test_every_pair_or_each_against_the_baseline(tmp_path):
    folders = [write_study(tmp_path / "a", name="a"), write_study(tmp_path / "b", name="b")]
    pairs = [(c.arm, c.baseline) for c in compared(folders)]
    assert len(pairs) == 6 and ("b/sgd", "a/adamw") in pairs
    pairs = [(c.arm, c.baseline) for c in compared(folders, "b/adamw")]
    assert pairs == [(arm, "b/adamw") for arm in ("a/adamw", "a/sgd", "b/sgd")]


def test_runs_of_other_problems_are_not_paired(tmp_path):
    same, other = fit_config(1), fit_config(1, data={"init_args": {"group_size": 4}})
    rate = fit_config(1)
    rate["model"]["init_args"]["optimizer"] = {"class_path": "A", "init_args": {"lr": 1.0}}
    folders = [
        write_run(tmp_path / "one", same, accuracy=0.5),
        write_run(tmp_path / "two", rate, accuracy=0.75),
        write_run(tmp_path / "three", other, accuracy=1.0),
    ]
    found = {(c.arm, c.baseline): c.differences[0] for c in compared(folders)}
    assert found["a-lr1", "sgd-lr0.01"] == Estimate(0.25, None, 1)
    assert found["sgd-lr0.01 (three)", "sgd-lr0.01"] is None
    assert found["sgd-lr0.01 (three)", "a-lr1"] is None
