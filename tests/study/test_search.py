"""`--search optuna`: rates are chosen, hopeless ones given up, and a killed search goes on."""

import json
import re
import statistics
import sys
import time
from pathlib import Path

import pytest

from rlsgd.study.command import main
from tests.study.studies import begin
from tests.study.test_runner import SGD, wait_for

# Validates at 10 times the rate. It ends by itself unless it is worse than every run before it, or
# a file `hang` is there.
FAKE_FIT = """
import os, pathlib, sys, time
import yaml

base, overlay = (yaml.safe_load(pathlib.Path(path).read_text()) for path in sys.argv[2::2])
folder = pathlib.Path(overlay["trainer"]["default_root_dir"])
value = overlay["model"]["init_args"]["optimizer"]["init_args"]["lr"] * 10
trace = pathlib.Path(base["trace"])
trace.touch()
before = [float(line.split()[2]) for line in trace.read_text().splitlines()]
with trace.open("a") as file:
    file.write(f"{folder.parent.name} {folder.name} {value}\\n")
(folder / "metrics.csv").write_text(
    f"epoch,reward,step,val/accuracy\\n0,,0,0\\n0,0.5,1,{value}\\n1,0.5,2,{value + 0.25}\\n"
)
(folder / "pid").write_text(str(os.getpid()))
if trace.with_name("hang").exists() or (len(before) >= 6 and value < min(before)):
    time.sleep(600)
"""


@pytest.fixture
def path(write_study) -> Path:
    arm = SGD | {"learning_rate": [1e-5, 1e-1]}
    return write_study(arms=[arm], trials=8, search="optuna", learning_rates_chosen_by="")


def trials(out: Path) -> list:
    import optuna

    return optuna.load_study(study_name="sgd", storage=f"sqlite:///{out / 'search.db'}").trials


def test_hopeless_rates_are_given_up_and_the_best_is_reported(path, fake_fit, trace, tmp_path):
    out = tmp_path / "out"
    assert main([str(path)], command=fake_fit) == 0
    arms = json.loads((out / "results.json").read_text())["arms"]
    rates = [arm["learning_rate"] for arm in arms if arm["seed"] == 0]
    assert len(set(rates)) == 8 and all(1e-5 <= rate <= 1e-1 for rate in rates)
    assert [t.params["learning_rate"] for t in trials(out)] == rates
    started = [line.split()[:2] for line in trace.read_text().splitlines()]
    whole = []  # in the order in which they ran
    for trial in trials(out):
        rate = trial.params["learning_rate"]
        ends = [arm for arm in arms if arm["learning_rate"] == rate]
        if trial.state.name == "COMPLETE":
            assert [end["status"] for end in ends] == ["finished", "finished"]
            assert trial.value == pytest.approx(10 * rate + 0.25, rel=1e-12)
            whole.append(10 * rate)
        else:
            assert trial.state.name == "PRUNED" and len(whole) >= 3
            assert 10 * rate < statistics.median(whole)
            assert [end["status"] for end in ends] == ["pruned", "pruned"]
            assert [ends[0]["name"], "seed-1"] not in started
    assert len(whole) < 8, "one of these rates is worse than all before it, and hangs"
    report = (out / "report.md").read_text()
    assert "0 of 2 (2 pruned)" in report
    [best] = re.findall(r"\| (\S+) \|.*\*\*best\*\*", report)
    assert float(best) == pytest.approx(max(whole) / 10, rel=1e-5)
    assert "searched by Optuna" in report


def test_a_killed_search_goes_on_with_the_rate_it_was_at(path, fake_fit, trace, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(path), "--trials", "2"], command=fake_fit) == 0
    done = trace.read_text()
    (tmp_path / "hang").touch()
    study = begin(path, "--trials", "3", command=fake_fit)
    while len(lines := trace.read_text().splitlines()) < 5:
        assert study.poll() is None
        time.sleep(0.05)
    name = lines[4].split()[0]
    wait_for(out / name / "seed-0/pid")
    study.kill()
    study.wait()
    assert [t.state.name for t in trials(out)] == ["COMPLETE", "COMPLETE", "RUNNING"]
    (tmp_path / "hang").unlink()
    assert main([str(path), "--trials", "4"], command=fake_fit) == 0
    assert trace.read_text().startswith(done)
    again = [line.split()[:2] for line in trace.read_text().splitlines()[5:]]
    assert again[:2] == [[name, "seed-0"], [name, "seed-1"]] and len(again) == 4
    found = trials(out)
    assert [t.state.name for t in found] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert found[2].params == found[3].params
    before = trace.read_text()
    assert main([str(path), "--trials", "4"], command=fake_fit) == 0
    assert trace.read_text() == before, "everything was done"
    assert len(json.loads((out / "results.json").read_text())["arms"]) == 8
    assert main([str(path), "--seeds", "0"], command=fake_fit) == 2
    assert "search.db was made with another configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "flags", "told"),
    [
        ({}, ["--force"], "--force: a search has no list of runs"),
        ({"arms": [SGD]}, [], "search needs an arm whose learning_rate is a list"),
        ({"search": None}, [], "trials must be at least 1, and needs search"),
        ({}, ["--trials=0"], "trials must be at least 1, and needs search, not 0"),
    ],
)
def test_what_cannot_be_searched_is_one_line(changes, flags, told, write_study, fake_fit, capsys):
    arm = SGD | {"learning_rate": [1e-5, 1e-1]}
    path = write_study(**{"arms": [arm], "search": "optuna", "trials": 2, **changes})
    assert main([str(path), *flags], command=fake_fit) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_without_optuna_the_extra_is_named(path, fake_fit, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main([str(path)], command=fake_fit) == 2
    assert "pip install 'rlsgd[search]'" in capsys.readouterr().err
