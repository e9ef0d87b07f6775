"""What a RUN may be, how arms of several are named, and what is refused."""

import json

import pytest
import yaml

from rlsgd.cli.main import main
from rlsgd.report.sources import load_sources
from tests.report.report_data import edit_results, fit_config, write_run, write_study


def names(folders):
    sources = load_sources([str(folder) for folder in folders])
    return [run.record["name"] for source in sources for run in source.runs]


def test_one_study_keeps_its_names_and_several_get_the_studys(tmp_path):
    a, b = write_study(tmp_path / "a"), write_study(tmp_path / "b")
    assert set(names([a])) == {"adamw", "sgd"}
    assert set(names([a, b])) == {"toy/adamw", "toy/sgd", "toy (2)/adamw", "toy (2)/sgd"}


def test_runs_that_differ_in_the_seed_alone_are_one_arm(tmp_path):
    first = write_run(tmp_path / "first", fit_config(0))
    second = write_run(tmp_path / "second", fit_config(1))
    other = write_run(tmp_path / "other", fit_config(0, data={}))
    assert names([first, second]) == ["sgd-lr0.01", "sgd-lr0.01"]
    assert names([first, second, other]) == ["sgd-lr0.01"] * 2 + ["sgd-lr0.01 (other)"]


def test_a_single_run_by_value(tmp_path):
    config = fit_config(7, "torch.optim.AdamW")
    config["trainer"]["precision"] = "bf16-mixed"
    folder = write_run(tmp_path / "run", config, accuracy=0.625, unchanged=0.75)
    (source,) = load_sources([str(folder)])
    record = source.runs[0].record
    assert record["name"] == "adamw-lr0.01" and record["optimizer"] == "torch.optim.AdamW"
    assert (record["seed"], record["precision"], record["status"]) == (7, "master", "finished")
    assert record["score"] == {"base": 0.25, "final": 0.625}
    assert record["reward"] == {"first": 0.3, "last": 0.4}
    assert record["update"]["unchanged_bf16"] == 0.75
    assert source.study["command"] is None and source.study["versions"] is None


def test_a_run_that_ended_before_its_epochs_does_not_count(tmp_path):
    (source,) = load_sources([str(write_run(tmp_path / "run", fit_config(0), epochs=1))])
    assert source.runs[0].record["status"] == "stopped early"
    config = fit_config(0)
    config["trainer"] |= {"max_epochs": None, "max_steps": 1}
    (source,) = load_sources([str(write_run(tmp_path / "steps", config, epochs=1))])
    assert source.runs[0].record["status"] == "finished"


def test_a_run_of_a_study_keeps_its_status(tmp_path):
    folder = write_run(tmp_path / "run", fit_config(0))
    run = {"status": "diverged", "exit_status": 3, "seconds": 1.5, "fingerprint": "f"}
    (folder / "run.json").write_text(json.dumps(run))
    (source,) = load_sources([str(folder)])
    assert source.runs[0].record["status"] == "diverged"


def error(capsys, *arguments) -> str:
    assert main(["report", *map(str, arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    prefix = "rlsgd report: error: "
    assert shown.err.startswith(prefix) and "Traceback" not in shown.err
    return shown.err.removeprefix(prefix)


def test_what_is_no_finished_run_is_refused_by_name(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    found = error(capsys, empty)
    assert found.startswith(f"RUN {empty} holds neither results.json")
    assert error(capsys, tmp_path / "none").startswith(f"RUN {tmp_path / 'none'} is no folder")
    study = write_study(tmp_path / "study")
    again = tmp_path / "empty" / ".." / "study"
    assert error(capsys, study, again).startswith(f"RUN {again} is given twice")


def test_scores_are_not_mixed(tmp_path, capsys):
    accuracy, loss = write_study(tmp_path / "a"), write_study(tmp_path / "b", score="loss")
    assert error(capsys, accuracy, loss).startswith(f"RUN {loss} is decided by loss")


@pytest.mark.parametrize(
    "change",
    [
        lambda results: results["arms"][0].pop("score"),
        lambda results: results["study"].pop("score"),
        lambda results: results.pop("arms"),
        lambda results: results.update(arms=3),
    ],
)
def test_results_of_another_form_are_refused(tmp_path, capsys, change):
    study = write_study(tmp_path / "study")
    edit_results(study, change)
    found = error(capsys, study)
    assert found.startswith(f"RUN {study}: ") and "run the study again" in found


@pytest.mark.parametrize(
    ("file", "text", "fragment"),
    [
        ("config.yaml", "- 1", "config.yaml must hold a mapping"),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "a: 1", "names no optimizer with a learning rate"),
        ("run.json", "{}", "run.json cannot be read"),
        ("provenance.json", "[]", "provenance.json cannot be read"),
        ("completions.jsonl", '{"epoch": 1}\n', "line 1 of"),
        ("update_sparsity.jsonl", "{}\n", "is no measurement"),
    ],
)
def test_damaged_files_are_named(tmp_path, capsys, file, text, fragment):
    folder = write_run(tmp_path / "run", fit_config(0))
    (folder / file).write_text(text)
    found = error(capsys, folder, "--out", tmp_path / "out")
    assert found.startswith("RUN") and fragment in found and str(folder) in found


def test_flags_are_checked(tmp_path, capsys):
    study = write_study(tmp_path / "study")
    assert error(capsys, study, "--prompts", -1).startswith("--prompts -1")
    out = tmp_path / "out"
    found = error(capsys, study, "--baseline", "lion", "--out", out)
    assert found == "--baseline lion is none of the arms that are compared: adamw, sgd\n"
    file = study / "results.json"
    assert error(capsys, study, "--out", file).startswith(f"--out {file}: ")


def test_no_learning_rate_above_zero_is_an_error_not_a_crash(tmp_path, capsys):
    config = fit_config(0)
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.0
    found = error(capsys, write_run(tmp_path / "run", config))
    assert "learning_rate" in found
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text()) == config
