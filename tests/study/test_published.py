"""Evaluations of trained policies, and a paper's numbers beside them."""

import json
import sys

import pytest
import yaml

from rlsgd.study.arms import load_study
from rlsgd.study.command import main
from rlsgd.study.evaluations import evaluation_runs
from rlsgd.study.expansion import expand_runs
from rlsgd.study.published import load_published, published_tables

# Stands in for `rlsgd test`: its accuracy depends on rate, seed and length.
FAKE_TEST = """
import json, pathlib, sys
import yaml

base, overlay = (yaml.safe_load(pathlib.Path(path).read_text()) for path in sys.argv[2::2])
folder = pathlib.Path(overlay["trainer"]["default_root_dir"])
policy = pathlib.Path(overlay["model"]["init_args"]["policy"])
assert policy.name == "hf" and policy.parent.name == f"seed-{overlay['seed_everything']}"
rate = overlay["model"]["init_args"]["optimizer"]["init_args"]["lr"]
length = overlay["model"]["init_args"]["max_completion_tokens"]
accuracy = rate + length / 100 + overlay["seed_everything"] / 10
metrics = {"sums/accuracy": accuracy, "products/accuracy": accuracy / 2, "mean_length": 3.0}
record = {"metrics": {name: {"value": value} for name, value in metrics.items()}}
(folder / "evaluation.json").write_text(json.dumps(record))
sys.exit(base.get("end", 0))
"""
TABLE = {
    "title": "accuracy in percent",
    "source": "a paper, table 9",
    "columns": [
        {"title": "Sums", "metric": "sums/accuracy"},
        {"title": "Products", "metric": "products/accuracy"},
        {"title": "Mean", "metric": "mean"},
    ],
    "rows": [
        {"arm": "sgd", "evaluation": "short", "values": [40.5, None, 30]},
        {"arm": "another", "evaluation": "short", "values": [1, 2, 3]},
    ],
}
SPARSITY = {
    "title": "unchanged",
    "source": "a paper, table 10",
    "columns": [
        {"title": "bf16", "metric": "update/unchanged_bf16"},
        {"title": "rank", "metric": "update/effective_rank", "scale": 1},
    ],
    "rows": [{"arm": "sgd", "values": [99.0, 5]}],
}
SHORT = {"name": "short", "overrides": {"model.init_args.max_completion_tokens": 10}}
LONG = {"name": "long", "overrides": {"model.init_args.max_completion_tokens": 20}}


def arm(name, **changes):
    return {"name": name, "optimizer": "torch.optim.SGD", "learning_rate": 0.01, **changes}


@pytest.fixture
def write_evaluated(write_study, tmp_path):
    """A study with evaluations and published tables; the base config exports its policy."""

    def write(**changes):
        (tmp_path / "published.yaml").write_text(
            yaml.safe_dump({"table9": TABLE, "sparsity": SPARSITY})
        )
        path = write_study(
            **{
                "evaluations": [SHORT, LONG],
                "published": "published.yaml",
                "published_tables": ["table9", "sparsity"],
                "arms": [arm("adamw"), arm("sgd", learning_rate=[0.01, 0.02])],
                **changes,
            }
        )
        base = yaml.safe_load((tmp_path / "base.yaml").read_text())
        base["trainer"]["callbacks"] = [{"class_path": "rlsgd.callbacks.HFExport"}]
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
        return path

    return write


@pytest.fixture
def run_evaluated(fake_fit, tmp_path):
    script = tmp_path / "fake_test.py"
    script.write_text(FAKE_TEST)

    def run(path):
        return main([str(path)], command=fake_fit, test_command=[sys.executable, str(script)])

    return run


def test_own_numbers_stand_beside_the_published_ones(
    write_evaluated, run_evaluated, tmp_path, capsys
):
    assert run_evaluated(write_evaluated()) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    table9, sparsity = results["study"]["published"]
    [row] = table9["rows"]
    # the best rate of the sweep by validation is 0.02; seeds 0 and 1 give 12% and 22%
    assert (row["arm"], row["learning_rate"]) == ("sgd", 0.02)
    assert [cell["mean"] for cell in row["own"]] == pytest.approx([17, 8.5, 12.75], rel=1e-12)
    # t(1) s / sqrt(2) of 12 and 22 is 12.706 x 5
    assert row["own"][0]["half_width"] == pytest.approx(63.53, rel=1e-12)
    assert row["published"] == [40.5, None, 30]
    # the fake run logs 0.8 at its end, and no rank
    assert sparsity["rows"][0]["own"] == [{"mean": 80.0, "half_width": 0.0}, None]
    report = (tmp_path / "out" / "report.md").read_text()
    [line] = [line for line in report.splitlines() if line.startswith("| sgd | 0.02 | short |")]
    assert line.split(" | ")[3] == "17.00 ± 63.53 [40.5]"
    assert line.split(" | ")[4].startswith("8.50 ± 31.7") and line.endswith(
        "[n/a] | 12.75 ± 47.65 [30] |"
    )
    assert "| sgd | 0.02 | training | 80.00 ± 0.00 [99] | n/a [5] |" in report
    assert "## Evaluation long" in report and "| sgd-lr0.01 | 26.0 ± 63.5 | 13.0 ± 31.8 |" in report
    assert "a paper, table 9" in capsys.readouterr().out


def test_every_finished_run_is_evaluated_in_a_folder_of_its_own(
    write_evaluated, run_evaluated, tmp_path
):
    path = write_evaluated(seeds=[3])
    assert run_evaluated(path) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for run in results["arms"]:
        assert list(run["evaluations"]) == ["short", "long"]
        folder = tmp_path / "out" / run["name"]
        assert {f.name for f in folder.iterdir()} == {"seed-3", "seed-3-short", "seed-3-long"}
    # what is finished is kept, and a changed evaluation runs again
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("evaluation.json")}
    changed = {**LONG, "overrides": {"model.init_args.max_completion_tokens": 30}}
    assert run_evaluated(write_evaluated(seeds=[3], evaluations=[SHORT, changed])) == 0
    again = {f for f, time in before.items() if f.stat().st_mtime_ns != time}
    assert {f.parent.name for f in again} == {"seed-3-long"}


def test_what_diverged_is_not_evaluated(write_evaluated, run_evaluated, tmp_path):
    arms = [arm("adamw"), arm("sgd", overrides={"fake.end": 3})]
    assert run_evaluated(write_evaluated(arms=arms, seeds=[0])) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["arms"][1]["evaluations"] == {"short": None, "long": None}
    assert results["study"]["published"][0]["rows"][0]["own"] == [None, None, None]


def test_a_failed_evaluation_fails_the_study(write_evaluated, run_evaluated, tmp_path):
    path = write_evaluated(seeds=[0])
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**base, "end": 1}))
    assert run_evaluated(path) == 1


def test_an_evaluation_changes_what_it_says_and_nothing_else(write_evaluated):
    [run] = expand_runs(load_study(write_evaluated(arms=[arm("sgd")], seeds=[0])))
    test, _ = evaluation_runs(load_study(write_evaluated(arms=[arm("sgd")], seeds=[0])), run)
    assert test.overlay["model"]["init_args"].pop("policy") == str(run.folder / "hf")
    assert test.overlay["model"]["init_args"].pop("max_completion_tokens") == 10
    test.overlay["trainer"].pop("default_root_dir"), run.overlay["trainer"].pop("default_root_dir")
    test.overlay["trainer"].pop("logger"), run.overlay["trainer"].pop("logger")
    assert test.overlay == run.overlay


def test_without_an_export_there_is_nothing_to_evaluate(write_study, tmp_path, capsys):
    path = write_study(evaluations=[SHORT])
    assert main([str(path)]) == 2
    assert "add the callback HFExport" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"published_tables": ["table8"]}, "'table8' is not in"),
        ({"evaluations": [LONG]}, "does not have evaluations short of 'table9'"),
        ({"arms": [arm("adamw")]}, "does not have any of its arms of 'table9'"),
        ({"published": None}, "published_tables needs published"),
        ({"evaluations": [SHORT, SHORT]}, "evaluations.name 'short' appears more than once"),
    ],
)
def test_tables_that_do_not_fit_the_study_are_refused(write_evaluated, changes, message):
    path = write_evaluated(**changes)
    with pytest.raises(ValueError, match=message):
        published_tables(load_study(path))


def test_a_row_with_too_few_values_is_refused(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump({"t": {**SPARSITY, "rows": [{"arm": "sgd", "values": [1]}]}}))
    with pytest.raises(ValueError, match="sgd has 1 values for 2 columns"):
        load_published(path)
