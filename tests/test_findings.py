"""docs/findings.md has the numbers of the studies' files, and the statistics are right."""

import math
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from tools.findings import BLOCK, BLOCKS, PAGE, written
from tools.findings_statistics import holm, p_value, smallest_problem_interval
from tools.findings_tables import study, values


def test_the_page_is_what_the_files_give():
    page = PAGE.read_text(encoding="utf-8")
    assert set(BLOCKS) == {found[2] for found in BLOCK.finditer(page)}
    assert written(page) == page, "run: python tools/findings.py"


def test_a_number_changed_by_hand_is_noticed():
    page = PAGE.read_text(encoding="utf-8")
    assert written(page.replace("95.6 ± 0.7 %", "95.7 ± 0.7 %")) == page


def test_every_study_is_named_with_its_command():
    page = Path("docs/findings.md").read_text(encoding="utf-8")
    for name in ("momentum", "precision", "pretrain", "smollm2"):
        assert f"`rlsgd study configs/studies/{name}.yaml`" in page


def test_p_values_are_scipys():
    for arm in ("rmsprop", "adamw"):
        pair = (values(study("momentum")[name], "score.final") for name in (arm, "sgd"))
        assert p_value("momentum", arm, "sgd") == pytest.approx(float(ttest_rel(*pair).pvalue))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_problem_interval_by_hand():
    # 4 of 64 problems gained, none lost: the differences' variance is 1/16 - 1/256
    assert smallest_problem_interval(4 / 64, 64) == pytest.approx(
        1.96 * math.sqrt((1 / 16 - 1 / 256) / 64)
    )
