import struct
from pathlib import Path

import pytest

from rlsgd.study.tables import number, table

SGD = {"name": "sgd", "optimizer": "torch.optim.SGD", "learning_rate": 0.01}


def cells(report: str, start: str) -> list[str]:
    (line,) = [line for line in report.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(report: str, title: str) -> str:
    return report.partition(f"## {title}")[2].partition("\n## ")[0]


def test_the_report_by_value(write_study, run_study, tmp_path, capsys):
    arms = [SGD | {"name": "adamw"}, SGD | {"learning_rate": 0.03, "precision": "bf16"}]
    path = write_study(arms=arms, question="Does it matter?")
    assert run_study(path) == 0
    report = (tmp_path / "out/report.md").read_text()
    assert report.startswith("# toy\n\nDoes it matter?\n")
    assert f"```bash\nrlsgd study {path}\n```" in report
    # --- Hand calculation --- accuracies 0.53 and 0.63: mean 0.58, s = 0.1 / sqrt(2),
    # t(1) s / sqrt(2) = 12.706 * 0.05 = 0.6353
    assert cells(section(report, "Outcome"), "sgd") == [
        "sgd",
        "torch.optim.SGD",
        "0.03",
        "bf16",
        "2",
        "0.300 → 0.400 ± 0.000",
        "25.0 → 58.0 ± 63.5",
    ]
    difference = section(report, "Difference in final accuracy from adamw")
    assert cells(difference, "sgd") == ["sgd", "2", "+2.0 ± 0.0"]
    update = section(report, "What training changed")
    shown = ["sgd", "bf16", "2 epochs, 2 optimizer steps", "80.00 ± 0.00"]
    assert cells(update, "sgd")[:4] == shown
    assert "bf16 view, tolerance 0, after 2 epochs, 2 optimizer steps" in update
    for title in ("Outcome", "Difference", "What training changed", "Memory"):
        assert "Learning rates chosen by: a coin" in section(report, title)
    assert "Means over 2 seeds (0, 1)" in report
    assert "Runs that did not finish" not in report
    assert "Learning rates of" not in report
    shown = capsys.readouterr().out
    folder = tmp_path / "out"
    for place in (folder / "report.md", folder / "plots", f"tensorboard --logdir {folder}"):
        assert str(place) in shown


def test_a_study_of_loss_prefers_the_lowest(write_study, run_study, tmp_path):
    arms = [SGD | {"name": "a"}, SGD | {"learning_rate": [0.1, 0.2]}]
    run_study(write_study(arms=arms, seeds=[0], score="loss", measures=["distance", "absent"]))
    report = (tmp_path / "out/report.md").read_text()
    # --- Hand calculation --- the fake's loss is 4, then 2 + rate; its distance 3 * rate
    assert cells(section(report, "Outcome"), "sgd-lr0.1")[-1] == "4.000 → 2.100"
    difference = section(report, "Difference in final validation loss from a")
    assert cells(difference, "sgd-lr0.1") == ["sgd-lr0.1", "1", "+0.090"]
    assert "| 0.1 | 1 | 2.100 | 0.400 | **best** |" in report
    measured = section(report, "Measures at the end")
    assert cells(measured, "sgd-lr0.2") == ["sgd-lr0.2", "0.6", "n/a"]
    assert (tmp_path / "out/plots/loss.png").is_file()


def test_one_seed_shows_no_interval_and_says_so(write_study, run_study, tmp_path):
    run_study(write_study(seeds=[4]))
    report = (tmp_path / "out/report.md").read_text()
    assert "One seed (4): no interval is given" in report
    assert "±" not in report


def test_a_sweep_has_its_table_with_the_best_rate(write_study, run_study, tmp_path):
    diverging = SGD | {"name": "wild", "overrides": {"fake.end": 3}}
    arms = [diverging, SGD | {"learning_rate": [0.1, 0.05, 0.2]}]
    run_study(write_study(arms=arms, seeds=[0]))
    report = (tmp_path / "out/report.md").read_text()
    table = section(report, "Learning rates of sgd (torch.optim.SGD, fp32)")
    rows = [line for line in table.splitlines() if line.startswith("| 0")]
    assert rows == [
        "| 0.05 | 1 | 55.0 | 0.400 |  |",
        "| 0.1 | 1 | 60.0 | 0.400 |  |",
        "| 0.2 | 1 | 70.0 | 0.400 | **best** |",
    ]
    assert "Best: best mean final accuracy (highest); ties: higher mean reward" in table
    assert cells(section(report, "Outcome"), "wild")[4:] == [
        "0 of 1 (1 diverged)",
        "n/a → n/a",
        "n/a → n/a",
    ]
    assert cells(section(report, "Difference"), "sgd-lr0.2") == ["sgd-lr0.2", "0", "n/a"]
    assert "favours it" in report


def test_every_figure_of_the_report_is_a_picture(write_study, run_study, tmp_path):
    run_study(write_study(arms=[SGD | {"learning_rate": [0.1, 0.2]}]))
    out = tmp_path / "out"
    report = (out / "report.md").read_text()
    linked = [part.partition(")")[0] for part in report.split("](")[1:]]
    names = ["reward", "accuracy", "unchanged_bf16", "learning_rates"]  # all that was measured
    assert linked == [f"plots/{name}.png" for name in names]
    assert [width_and_height(out / path)[1] for path in linked] == [660] * 4  # 4.4 inches, 150 dpi


def width_and_height(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_a_column_that_nobody_has_anything_for_is_left_out():
    rows = [["a", "n/a"], ["b", "n/a → n/a"]]
    assert table(["arm", "reward"], rows, optional="reward") == "| arm |\n| --- |\n| a |\n| b |"
    assert "| a | n/a |" in table(["arm", "reward"], rows)
    assert "| a | n/a |" in table(["arm", "reward"], [*rows, ["c", "0.5"]], optional="reward")


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (-0.0004, True, "+0.0"),
        (-0.0004, False, "0.0"),
        (-0.0006, True, "-0.1"),
        (0.5, True, "+50.0"),
    ],
)
def test_what_rounds_to_zero_has_no_minus(value, sign, text):
    assert number(value, 100, 1, sign=sign) == text
