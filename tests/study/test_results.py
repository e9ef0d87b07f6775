import json
import platform
import sys
from importlib.metadata import version

import pytest

import rlsgd
from rlsgd.study.arms import load_study
from rlsgd.study.expansion import expand_runs
from rlsgd.study.processes import Outcome
from rlsgd.study.report import markdown_report
from rlsgd.study.results import epoch_series, read_metrics, run_record, study_record

SGD = {
    "name": "sgd",
    "optimizer": "torch.optim.SGD",
    "learning_rate": 0.01,
}

# Three epochs of two optimizer steps, validated after the first and the last.
METRICS = """\
epoch,reward,step,val/accuracy,update/unchanged_fp32,update/unchanged_bf16,update/within_1e-5,\
update/effective_rank,update/effective_rank_percent,memory/parameter_bytes,\
memory/gradient_bytes,memory/optimizer_state_bytes,memory/peak_rss_bytes,grad_clipped_fraction
0,,0,0.25,,,,,,,,,
0,0.125,1,,,,,,,,,,
,,2,,0.75,0.875,0.8125,3.5,7.0,4096,0,0,900000,0.5
0,,2,0.375,,,,,,,,,
1,0.5,3,,,,,,,,,,
1,,4,,0.5,0.75,0.625,4.5,9.0,4096,4096,8192,1000000,0.0
2,0.625,5,,,,,,,,,,
2,,6,,0.25,0.625,0.5,5.5,11.0,4096,4096,8192,999999,0.25
2,,6,0.875,nan,,,,,,,,
"""


NO_CRITIC = (
    "unchanged_fp32",
    "unchanged_bf16",
    "within_1e-5",
    "bf16_difference_isclose_1e-5",
    "effective_rank",
    "effective_rank_percent",
)


@pytest.fixture
def study(write_study):
    measures = ["update/within_1e-5", "memory/none"]
    return load_study(write_study(arms=[SGD], seeds=[1], measures=measures))


@pytest.fixture
def run(study):
    (run,) = expand_runs(study)
    run.folder.mkdir(parents=True)
    return run


def outcome(status: str, exit_status: int = 0) -> Outcome:
    return Outcome(status=status, exit_status=exit_status, seconds=12.5, fingerprint="f")


def test_the_record_of_a_run_by_value(study, run):
    (run.folder / "metrics.csv").write_text(METRICS)
    assert run_record(study, run, outcome("finished")) == {
        "name": "sgd",
        "sweep": None,
        "optimizer": "torch.optim.SGD",
        "optimizer_args": {},
        "optimizers": [],
        "learning_rate": 0.01,
        "seed": 1,
        "precision": "fp32",
        "status": "finished",
        "epochs": 3,
        "optimizer_steps": 6,
        "reward": {"first": 0.125, "last": 0.625},
        "score": {"base": 0.25, "final": 0.875},
        "update": {
            "unchanged_fp32": 0.25,
            "unchanged_bf16": 0.625,
            "within_1e-5": 0.5,
            "bf16_difference_isclose_1e-5": None,
            "effective_rank": 5.5,
            "effective_rank_percent": 11.0,
        },
        "value_update": dict.fromkeys(NO_CRITIC),
        "memory": {
            "parameter_bytes": 4096,
            "gradient_bytes": 4096,
            "optimizer_state_bytes": 8192,
            "peak_rss_bytes": 1000000,
            "peak_device_bytes": None,
        },
        "measures": {"update/within_1e-5": 0.5, "memory/none": None},
        "clipped_in_all_steps": {"grad_clipped_fraction": 0.25},
        "seconds": 12.5,
        "error": None,
    }


def test_series_count_epochs_trained_and_only_validation_knows_the_base(run):
    path = run.folder / "metrics.csv"
    path.write_text(METRICS)
    rows = read_metrics(path)
    assert epoch_series(rows, "val/accuracy") == {0: 0.25, 1: 0.375, 3: 0.875}
    assert epoch_series(rows, "reward") == {1: 0.125, 2: 0.5, 3: 0.625}
    assert epoch_series(rows, "update/unchanged_fp32") == {1: 0.75, 2: 0.5, 3: 0.25}


def test_a_first_epoch_of_one_step_is_not_taken_for_the_base(tmp_path):
    """Lightning's rows where every epoch has one step and is validated."""
    table = "epoch,step,val/accuracy\n0,0,0.25\n0,0,0.375\n1,1,0.5\n"
    (tmp_path / "metrics.csv").write_text(table)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert epoch_series(rows, "val/accuracy") == {0: 0.25, 1: 0.375, 2: 0.5}


def test_a_critic_is_recorded_and_reported_beside_the_policy(study, run):
    (run.folder / "metrics.csv").write_text(
        "epoch,step,update/unchanged_fp32,value_update/unchanged_fp32,value_update/unchanged_bf16\n"
        "0,1,0.75,0.5,0.625\n"
        "1,2,0.5,0.25,0.375\n"
    )
    record = run_record(study, run, outcome("finished"))
    assert record["value_update"]["unchanged_fp32"] == 0.25
    assert record["value_update"]["unchanged_bf16"] == 0.375
    report = markdown_report(study_record(study, "rlsgd study", [record]), [])
    [policy] = [line for line in report.splitlines() if line.startswith("| sgd | fp32 |")]
    [critic] = [line for line in report.splitlines() if line.startswith("| sgd, critic | fp32 |")]
    assert "50.00" in policy and "25.00" in critic and "37.50" in critic


def test_what_a_run_did_not_reach_is_null(study, run):
    (run.folder / "metrics.csv").write_text("epoch,step,val/accuracy,reward\n0,0,0.25,\n0,0,,inf\n")
    record = run_record(study, run, outcome("diverged", 3))
    assert record["score"] == {"base": 0.25, "final": None}
    assert record["reward"] == {"first": None, "last": None}
    assert (record["epochs"], record["optimizer_steps"], record["error"]) == (0, None, None)


def test_a_failed_run_keeps_the_last_lines_of_its_log(study, run):
    (run.folder / "log.txt").write_text("".join(f"line {i}\n" for i in range(20)))
    error = run_record(study, run, outcome("failed", -9))["error"]
    assert error.splitlines() == ["exit status -9", *(f"line {i}" for i in range(8, 20))]


def test_results_json_describes_the_study(write_study, run_study, tmp_path):
    path = write_study(question="Which?")
    run_study(path, "--seeds", "1")
    results = json.loads((tmp_path / "out/results.json").read_text())
    study = results["study"]
    assert study.pop("date")[10] == "T"
    machine = study.pop("machine")
    assert machine["platform"] == platform.platform()
    assert set(machine) == {"platform", "processor", "cores", "memory_bytes"}
    assert study == {
        "name": "toy",
        "command": f"rlsgd study {path} --seeds 1",
        "question": "Which?",
        "learning_rates_chosen_by": "a coin",
        "score": "accuracy",
        "versions": {
            "rlsgd": rlsgd.__version__,
            **{name: version(name) for name in ("torch", "lightning", "transformers")},
            "python": ".".join(map(str, sys.version_info[:3])),
        },
        "precision": ["fp32"],
        "seeds": [1],
        "matched": None,
        "published": [],
    }
    # --- Hand calculation --- the fake's final accuracy: 0.5 + 0.1 * seed + rate 0.01
    assert [(run["name"], run["score"]) for run in results["arms"]] == [
        ("adamw", {"base": 0.25, "final": 0.61}),
        ("sgd", {"base": 0.25, "final": 0.61}),
    ]
