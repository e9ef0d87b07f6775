"""`--launcher submitit` with jobs on this machine: they end, outlive a study, and are requeued."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlsgd.core.processes import identity, is_alive
from rlsgd.study.command import main
from tests.study.studies import begin
from tests.study.test_runner import SGD, statuses

# Waits until a file `go` is there; says how it was called, and by which process.
FAKE_FIT = """
import os, pathlib, signal, sys, time
import yaml

base, overlay = (yaml.safe_load(pathlib.Path(path).read_text()) for path in sys.argv[2:5:2])
folder = pathlib.Path(overlay["trainer"]["default_root_dir"])
trace = pathlib.Path(base["trace"])
ignored = signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
with trace.open("a") as file:
    print(folder.parent.name, *sys.argv[5:], os.environ["SLURM_JOB_NAME"], ignored, file=file)
(folder / "config.yaml").write_text("")
(folder / "metrics.csv").write_text("epoch,reward,step,val/accuracy\\n0,,0,0.25\\n0,0.3,1,0.5\\n")
(folder / "pids").write_text(f"{os.getpid()} {os.getppid()}")
while not trace.with_name("go").exists():
    time.sleep(0.05)
sys.exit(overlay.get("fake", {}).get("end", 0))
"""
CALLED = "interactive True"
FLAGS = ["--launcher=submitit", "--cluster=local"]


@pytest.fixture
def path(write_study) -> Path:
    return write_study(arms=[SGD], seeds=[0], job={"timeout_min": 60})


def pids(folder: Path) -> tuple[int, int]:
    """The run's process and that of its job."""
    path = folder / "pids"
    wait_until(lambda: path.is_file() and len(path.read_text().split()) == 2)
    run, job = map(int, path.read_text().split())
    return run, job


def wait_until(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_jobs_end_and_are_reported(write_study, fake_fit, trace, tmp_path):
    (tmp_path / "go").touch()
    failing = SGD | {"name": "failing", "overrides": {"fake.end": 1}}
    path = write_study(arms=[SGD, failing], seeds=[0], jobs=2, job={"timeout_min": 60})
    assert main([str(path), *FLAGS], command=fake_fit) == 1
    assert statuses(tmp_path / "out") == [("sgd", 0, "finished"), ("failing", 0, "failed")]
    assert sorted(trace.read_text().splitlines()) == [f"failing {CALLED}", f"sgd {CALLED}"]
    assert "| failing | 0 | failed |" in (tmp_path / "out/report.md").read_text()
    assert main([str(path), *FLAGS], command=fake_fit) == 1
    assert len(trace.read_text().splitlines()) == 3, "what is finished is kept"


def test_a_job_outlives_a_killed_study_and_the_next_one_waits_for_it(
    path, fake_fit, trace, tmp_path
):
    study = begin(path, *FLAGS, command=fake_fit)
    folder = tmp_path / "out/sgd/seed-0"
    run, _ = pids(folder)
    wait_until(lambda: "id" in json.loads((folder / "job.json").read_text()))
    study.kill()
    study.wait()
    assert identity(run) is not None
    timer = threading.Timer(1.0, (tmp_path / "go").touch)
    timer.start()
    assert main([str(path), *FLAGS], command=fake_fit) == 0
    timer.join()
    assert statuses(tmp_path / "out") == [("sgd", 0, "finished")]
    assert trace.read_text().splitlines() == [f"sgd {CALLED}"], "it was started once"


def test_a_preempted_job_goes_on_with_its_run(path, fake_fit, trace, tmp_path):
    study = begin(path, *FLAGS, command=fake_fit)
    folder = tmp_path / "out/sgd/seed-0"
    run, job = pids(folder)
    (folder / "pids").unlink()
    os.kill(job, signal.SIGUSR2)  # as SLURM does before it takes a node away
    again, _ = pids(folder)
    assert again != run and identity(run) is None
    (tmp_path / "go").touch()
    assert study.wait(120) == 0
    assert trace.read_text().splitlines() == [f"sgd {CALLED}", f"sgd --ckpt_path last {CALLED}"]
    assert statuses(tmp_path / "out") == [("sgd", 0, "finished")]


def test_an_interrupted_study_cancels_its_jobs(path, fake_fit, trace, tmp_path):
    study = begin(path, *FLAGS, command=fake_fit)
    folder = tmp_path / "out/sgd/seed-0"
    run, job = pids(folder)
    record = identity(job)
    study.send_signal(signal.SIGTERM)
    assert study.wait(120) == 128 + signal.SIGTERM
    assert identity(run) is None and record is not None
    wait_until(lambda: not is_alive(record))
    assert not (folder / "run.json").exists() and not (folder / "job.json").exists()
    (tmp_path / "go").touch()
    assert main([str(path), *FLAGS], command=fake_fit) == 0
    assert trace.read_text().splitlines() == [f"sgd {CALLED}"] * 2


def test_a_job_that_another_replaced_writes_nothing(path, fake_fit, tmp_path, capsys):
    """Sent, and its study killed before it noted which job it is: nothing is guessed."""
    folder = tmp_path / "out/sgd/seed-0"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text('{"token": "a"}')
    assert main([str(path), *FLAGS], command=fake_fit) == 2
    assert "its job may be queued" in capsys.readouterr().err
    assert main([str(path)], command=fake_fit) == 2
    assert "--launcher processes" in capsys.readouterr().err
    from rlsgd.study.arms import load_study
    from rlsgd.study.expansion import expand_runs
    from rlsgd.study.jobs import Work

    [run] = expand_runs(load_study(path))
    Work(run, tuple(fake_fit), 1, "b")()
    assert {one.name for one in folder.iterdir()} == {"job.json"}


@pytest.mark.parametrize(
    ("job", "flags", "told"),
    [
        ({}, FLAGS, "job.timeout_min is missing in CONFIG"),
        ({"timeout_min": 9, "gpus": 1}, FLAGS, "cluster local: "),
        ({"timeout_min": 9, "nodes": 2}, FLAGS, "job.nodes must be 1"),
        ({"timeout_min": 9}, FLAGS[:1], "cluster slurm: "),
    ],
)
def test_what_cannot_be_sent_is_one_line(
    job, flags, told, write_study, fake_fit, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", "")  # no srun
    path = write_study(arms=[SGD], seeds=[0], job=job)
    assert main([str(path), *flags], command=fake_fit) == 2
    error = capsys.readouterr().err
    assert "--launcher submitit" in error and told in error and error.count("\n") == 1


def test_without_submitit_the_extra_is_named(path, fake_fit, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([str(path), *FLAGS], command=fake_fit) == 2
    assert "pip install 'rlsgd[slurm]'" in capsys.readouterr().err
