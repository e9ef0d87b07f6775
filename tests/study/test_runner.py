import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from rlsgd.core.processes import identity
from rlsgd.core.types import DivergedError
from rlsgd.study import processes
from rlsgd.study.processes import DIVERGED_EXIT_STATUS

SGD = {"name": "sgd", "optimizer": "torch.optim.SGD", "learning_rate": 0.01}


def statuses(out: Path) -> list[tuple[str, int, str]]:
    results = json.loads((out / "results.json").read_text())
    return [(run["name"], run["seed"], run["status"]) for run in results["arms"]]


def test_arms_take_turns_within_a_seed(write_study, run_study, trace):
    assert run_study(write_study(threads_per_job=3)) == 0
    assert trace.read_text().splitlines() == [
        "adamw seed-0 3",
        "sgd seed-0 3",
        "adamw seed-1 3",
        "sgd seed-1 3",
    ]


def test_finished_runs_are_kept_and_changed_ones_run_again(write_study, run_study, trace, tmp_path):
    run_study(write_study(seeds=[0]))
    assert run_study(write_study(seeds=[0])) == 0
    assert len(trace.read_text().splitlines()) == 2  # the second study started nothing
    folder = tmp_path / "out/sgd/seed-0"
    seconds = json.loads((folder / "run.json").read_text())["seconds"]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["arms"][1]["seconds"] == seconds
    old = (folder / "overlay.yaml").read_text()
    arms = [SGD | {"name": "adamw", "optimizer": "torch.optim.AdamW"}, SGD | {"learning_rate": 0.2}]
    assert run_study(write_study(arms=arms, seeds=[0])) == 0
    assert trace.read_text().splitlines()[2:] == ["sgd seed-0 1"]
    (moved,) = (tmp_path / "out/.replaced").iterdir()
    assert moved.name == "0001-sgd-seed-0"
    assert (moved / "overlay.yaml").read_text() == old
    assert (folder / "overlay.yaml").read_text() != old


def test_an_overlay_of_the_command_line_reaches_every_run(write_study, run_study, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"fake: {{{name}: 1}}\n")
    flags = [f"--overlay={tmp_path / name}.yaml" for name in ("one", "two")]
    assert run_study(write_study(seeds=[0]), *flags) == 0
    overlays = sorted((tmp_path / "out").glob("*/seed-0/overlay.yaml"))
    fakes = [yaml.safe_load(path.read_text())["fake"] for path in overlays]
    assert fakes == [{"one": 1, "two": 1}] * 2
    assert run_study(write_study(), "--overlay", "absent.yaml") == 2


def test_force_runs_everything_again(write_study, run_study, trace):
    path = write_study(arms=[SGD], seeds=[0])
    run_study(path)
    run_study(path, "--force")
    assert trace.read_text().splitlines() == ["sgd seed-0 1"] * 2


def test_diverged_and_failed_runs_are_marked_and_the_others_report(
    write_study, run_study, trace, tmp_path
):
    arms = [
        SGD | {"name": "diverging", "overrides": {"fake.end": 3}},
        SGD | {"name": "failing", "overrides": {"fake.end": 1}},
        SGD,
    ]
    path = write_study(arms=arms, seeds=[0])
    assert run_study(path) == 1
    assert statuses(tmp_path / "out") == [
        ("diverging", 0, "diverged"),
        ("failing", 0, "failed"),
        ("sgd", 0, "finished"),
    ]
    report = (tmp_path / "out/report.md").read_text()
    assert "| diverging | 0 | diverged | 2 | 0.400 |" in report
    assert "failing, seed 0:\n\n```text\nexit status 1\nabout to end\n```" in report
    assert run_study(path) == 1
    assert trace.read_text().splitlines()[3:] == ["failing seed-0 1"]  # only it is tried again


def test_divergence_alone_is_a_result(write_study, run_study):
    arms = [SGD | {"overrides": {"fake.end": 3}}]
    assert run_study(write_study(arms=arms, seeds=[0])) == 0


def test_the_exit_status_of_divergence_is_the_trainers():
    assert DIVERGED_EXIT_STATUS == DivergedError.EXIT_CODE


def wait_for(path: Path) -> int:
    deadline = time.monotonic() + 30
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    return identity(pid) is not None  # and not: whether its parent has asked how it ended


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_runs_and_leaves_finished_ones_finished(
    write_study, run_study, fake_fit, trace, tmp_path, signum
):
    sleeping = [SGD | {"name": name, "overrides": {"fake.sleep": True}} for name in ("a", "b", "c")]
    path = write_study(arms=[SGD, *sleeping], seeds=[0], jobs=2)
    code = "import sys; from rlsgd.study.command import main; sys.exit(main(sys.argv[1:2],"
    study = subprocess.Popen(
        [sys.executable, "-c", f"{code} command=sys.argv[2:]))", path, *fake_fit]
    )
    pids = [wait_for(tmp_path / "out" / name / "seed-0" / "pid") for name in ("a", "b")]
    study.send_signal(signum)
    assert study.wait(30) == 128 + signum
    assert [is_alive(pid) for pid in pids] == [False, False]
    out = tmp_path / "out"
    assert [p.parent.parent.name for p in out.glob("*/*/run.json")] == ["sgd"]
    assert len(trace.read_text().splitlines()) == 3  # c never started
    awake = [SGD, *(arm | {"overrides": {}} for arm in sleeping)]
    assert run_study(write_study(arms=awake, seeds=[0])) == 0
    assert [line.split()[0] for line in trace.read_text().splitlines()[3:]] == ["a", "b", "c"]


def test_a_run_that_ignores_sigterm_is_killed(write_study, run_study, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    arms = [SGD | {"overrides": {"fake.sleep": True, "fake.stubborn": True}}]
    pids: list[int] = []

    def stop() -> None:
        pids.append(wait_for(tmp_path / "out/sgd/seed-0/pid"))
        os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    assert run_study(write_study(arms=arms, seeds=[0])) == 128 + signal.SIGTERM
    thread.join()
    assert not is_alive(pids[0])
    assert signal.getsignal(signal.SIGTERM) is handler


def test_two_studies_do_not_share_a_folder(write_study, run_study, trace, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_study(write_study()) == 2
    assert "--out: another study is running" in capsys.readouterr().err
    assert not trace.exists()


def test_a_link_out_of_the_folder_is_refused(write_study, run_study, trace, tmp_path, capsys):
    (tmp_path / "precious/seed-0").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sgd").symlink_to(tmp_path / "precious")
    assert run_study(write_study()) == 2
    assert "is a link to" in capsys.readouterr().err
    assert (tmp_path / "precious/seed-0").is_dir()
    assert not trace.exists()


def test_the_command_loads_no_trainer_and_no_plotting_code():
    code = "import sys, rlsgd.study.command; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "'jsonargparse'" in loaded
    for module in ("torch", "lightning", "transformers", "matplotlib"):
        assert f"'{module}'" not in loaded


def test_a_run_that_follows_another_waits_for_it_and_knows_its_folder(
    write_study, run_study, trace, tmp_path
):
    follower = SGD | {
        "name": "second",
        "after": "first",
        "overrides": {"data.init_args.start": "{after}/export-of-{seed}"},
    }
    arms = [SGD | {"name": "first"}, follower, SGD | {"name": "free"}]
    assert run_study(write_study(arms=arms, seeds=[4], jobs=2)) == 0
    started = [line.split()[0] for line in trace.read_text().splitlines()]
    assert sorted(started) == ["first", "free", "second"]
    assert started.index("first") < started.index("second")
    overlay = yaml.safe_load((tmp_path / "out/second/seed-4/overlay.yaml").read_text())
    assert overlay["data"]["init_args"]["start"] == f"{tmp_path}/out/first/seed-4/export-of-4"


def test_a_run_that_follows_a_changed_one_runs_again(write_study, run_study, trace):
    arms = [SGD | {"name": "first"}, SGD | {"name": "second", "after": "first"}]
    run_study(write_study(arms=arms, seeds=[0]))
    run_study(write_study(arms=[arms[0] | {"learning_rate": 0.2}, arms[1]], seeds=[0]))
    assert len(trace.read_text().splitlines()) == 4
