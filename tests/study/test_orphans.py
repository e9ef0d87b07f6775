"""A study that was killed leaves runs at work; the next one ends them before it starts its own."""

import json
import os
import signal
import subprocess

import pytest

from rlsgd.core.processes import identity
from rlsgd.study.orphans import PROCESS
from tests.study.studies import begin
from tests.study.test_runner import SGD, is_alive, wait_for


def kill_study(path, fake_fit, folder) -> int:
    """Start a study, kill it with SIGKILL amid its run, and return the run's process."""
    study = begin(path, command=fake_fit)
    pid = wait_for(folder / "pid")
    study.kill()
    study.wait()
    return pid


@pytest.fixture
def asleep(write_study):
    return write_study(arms=[SGD | {"overrides": {"fake.sleep": True}}], seeds=[0])


def test_the_run_of_a_killed_study_is_ended_before_it_starts_again(
    asleep, write_study, run_study, fake_fit, trace, tmp_path, capsys
):
    folder = tmp_path / "out/sgd/seed-0"
    pid = kill_study(asleep, fake_fit, folder)
    assert is_alive(pid), "the run has a session of its own"
    assert json.loads((folder / PROCESS).read_text()) == identity(pid)
    assert run_study(write_study(arms=[SGD], seeds=[0])) == 0
    assert not is_alive(pid)
    assert f"process {pid} of a study that was killed" in capsys.readouterr().err
    assert len(trace.read_text().splitlines()) == 2
    assert "pid" in {path.name for path in (tmp_path / "out/.replaced/0001-sgd-seed-0").iterdir()}


def test_a_process_that_only_has_the_number_is_left_alone(
    asleep, run_study, fake_fit, trace, tmp_path, capsys
):
    """The record names another start: nothing is ended, and nothing is started beside it."""
    folder = tmp_path / "out/sgd/seed-0"
    pid = kill_study(asleep, fake_fit, folder)
    stranger = subprocess.Popen(["sleep", "600"])  # in this test's own group
    record = identity(stranger.pid)
    assert record is not None
    (folder / PROCESS).write_text(json.dumps({**record, "start": record["start"] - 1}))
    assert run_study(asleep) == 2
    assert "which" in capsys.readouterr().err
    assert is_alive(pid) and is_alive(stranger.pid)
    assert len(trace.read_text().splitlines()) == 1
    for process in (pid, stranger.pid):
        os.kill(process, signal.SIGKILL)
    stranger.wait()


def test_a_finished_run_has_no_orphan(write_study, run_study, trace):
    assert run_study(write_study(arms=[SGD], seeds=[0])) == 0
    assert run_study(write_study(arms=[SGD], seeds=[0])) == 0
    assert len(trace.read_text().splitlines()) == 1
