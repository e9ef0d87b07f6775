"""Every run has a folder of its own, one writer at a time, and nothing is overwritten."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rlsgd.cli import folders
from rlsgd.core import run_folder
from rlsgd.core.processes import identity, is_alive
from rlsgd.core.run_folder import RunFolder, order_of

FIT = [
    *("fit", "--config", str(Path("configs/grpo_embedded.yaml").absolute())),
    *("--trainer.max_epochs=1", "--data.prompts_per_epoch=2", "--data.group_size=2"),
    "--data.val_problems=2",
]
HOLDER = """
import sys, time
from pathlib import Path
from rlsgd.core.run_folder import RunFolder
folder = RunFolder.at(Path(sys.argv[1]))
folder.acquire()
print("locked", flush=True)
time.sleep(600)
"""


def run(server, folder: Path, *arguments: str) -> tuple[int, str]:
    """`rlsgd fit` in a working folder: its exit status, and what it said last."""
    folder.mkdir(exist_ok=True)
    [code] = server.run(folder, [*FIT, *arguments])
    said = (folder / "output.txt").read_text().splitlines()
    return code, next((line for line in reversed(said) if "error:" in line), said[-1])


def test_two_names_of_the_same_second_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.time, "strftime", lambda _: "20260101-000000")
    names = [RunFolder.new(tmp_path).path.name for _ in range(3)]
    assert names == ["20260101-000000", "20260101-000000-2", "20260101-000000-3"]


def test_a_later_run_has_a_larger_number_whatever_the_clock_says(tmp_path, monkeypatch):
    orders = []
    for stamp in ("20300101-000000", "20200101-000000"):
        monkeypatch.setattr(run_folder.time, "strftime", lambda _, stamp=stamp: stamp)
        claimed = RunFolder.new(tmp_path)
        claimed.acquire()
        claimed.release()
        orders.append(order_of(claimed.path))
    assert orders == [1, 2]


def test_a_lock_names_its_process_and_dies_with_it(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match=f"process {holder.pid} is running there"):
        folders.claim(tmp_path, tmp_path, exclusive=True, goes_on=True)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    claimed = folders.claim(tmp_path, tmp_path, exclusive=True, goes_on=True)
    assert claimed is not None
    claimed.release()


def test_a_process_is_its_number_and_its_start():
    record = identity(os.getpid())
    assert record is not None and is_alive(record)
    assert not is_alive({**record, "start": record["start"] - 1})
    assert not is_alive({**record, "boot": "another"})
    ended = subprocess.Popen(["true"])
    deadline = time.monotonic() + 30
    while identity(ended.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert identity(ended.pid) is None, "ended, though nobody has asked how"
    ended.wait()


@pytest.mark.parametrize("logger", [[], ["--trainer.logger=false"], ["--trainer.logger=null"]])
def test_the_working_folder_stays_clean(logger, server, tmp_path):
    assert run(server, tmp_path / "work", *logger)[0] == 0
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"runs", "output.txt"}
    [folder] = (tmp_path / "work/runs/fit").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "provenance.json", "completions.jsonl"} <= names
    assert ("metrics.csv" in names) == (logger != ["--trainer.logger=false"])


def test_a_folder_is_the_users_choice_and_one_runs_own(server, tmp_path):
    """It moves the whole run; a second one is refused and leaves the first as it is."""
    work, other = tmp_path / "work", tmp_path / "disk/run"
    root = f"--trainer.default_root_dir={other}"
    assert run(server, work, root)[0] == 0
    assert {path.name for path in work.iterdir()} == {"output.txt"}
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.csv"} <= {path.name for path in before}
    code, error = run(server, work, root, "--seed_everything=5")
    assert code == 2 and "holds a run already: go on with --ckpt_path last" in error
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


OPEN = {"save_dir": "./mlruns", "tracking_uri": None, "artifact_location": None}
DATABASE = {"tracking_uri": "sqlite:///{}/mlflow.db", "artifact_location": "{}/mlartifacts"}


@pytest.mark.parametrize(
    ("name", "given", "filled"),
    [
        ("lightning.pytorch.loggers.WandbLogger", {"save_dir": "."}, {"save_dir": "{}"}),
        ("lightning.pytorch.loggers.MLFlowLogger", OPEN, OPEN | DATABASE),
        ("MLFlowLogger", OPEN | {"tracking_uri": "http://x"}, OPEN | {"tracking_uri": "http://x"}),
        (
            "rlsgd.integrations.trackio.TrackioLogger",
            {"save_dir": None},
            {"save_dir": "{}/trackio"},
        ),
        ("TrackioLogger", {"save_dir": "/elsewhere"}, {"save_dir": "/elsewhere"}),
    ],
)
def test_loggers_of_a_server_write_into_the_runs_folder(name, given, filled, tmp_path):
    trainer = _namespace(
        {"default_root_dir": None, "logger": [{"class_path": name, "init_args": given}]}
    )
    assert folders.named_folder(trainer) is None
    folders.fill(trainer, tmp_path / "one")
    assert trainer.default_root_dir == str(tmp_path / "one")
    found = vars(trainer.logger[0].init_args)
    assert found == {k: v and v.format(tmp_path / "one") for k, v in filled.items()}


def test_evaluations_leave_a_runs_config_alone(server, tmp_path):
    work = tmp_path / "work"
    root = f"--trainer.default_root_dir={tmp_path / 'run'}"
    assert run(server, work, root)[0] == 0
    before = (tmp_path / "run/config.yaml").read_bytes()
    [code] = server.run(work, ["test", *FIT[1:3], root, "--data.val_problems=2"])
    assert code == 0
    assert (tmp_path / "run/config.yaml").read_bytes() == before
    test = yaml.safe_load((tmp_path / "run/config-test.yaml").read_text())
    assert test["data"]["init_args"]["val_problems"] == 2


def _namespace(value):
    if isinstance(value, dict):
        return folders.Namespace(**{key: _namespace(item) for key, item in value.items()})
    return [_namespace(item) for item in value] if isinstance(value, list) else value
