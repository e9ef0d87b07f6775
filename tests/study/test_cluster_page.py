"""docs/cluster.md's study with real fits: jobs on this machine, rates by Optuna, a kill between."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

PAGE = Path("docs/cluster.md").read_text()
SMALL = {
    "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    "data": {"init_args": {"prompts_per_epoch": 2, "group_size": 2, "val_problems": 2}},
}


@pytest.mark.slow  # two processes that import everything, and the models that they train
def test_a_search_on_a_cluster_is_killed_goes_on_and_reports(tmp_path: Path):
    study = yaml.safe_load(PAGE.split("```yaml\n")[1].partition("```")[0])
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(study | {"seeds": [0], "jobs": 1}))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    command = [sys.executable, "-m", "rlsgd", "study", "cluster.yaml", "--cluster=local"]
    command += ["--trials=2", "--overlay=small.yaml", "--out=out"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    killed = subprocess.Popen(command, cwd=tmp_path, env=env)
    while not (at_work := list(tmp_path.glob("out/sgd-lr*/seed-0/process.json"))):
        assert killed.poll() is None
        time.sleep(0.05)
    first = at_work[0].parent
    while "id" not in json.loads((first / "job.json").read_text()):
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert not (first / "run.json").exists()
    process = (first / "process.json").read_text()
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    runs = json.loads((tmp_path / "out/results.json").read_text())["arms"]
    assert [run["status"] for run in runs] == ["finished", "finished"]
    assert [run["epochs"] for run in runs] == [1, 1]
    assert first.parent.name == runs[0]["name"] != runs[1]["name"]
    assert (first / "process.json").read_text() == process, "the next study waited for it"
    report = (tmp_path / "out/report.md").read_text()
    assert "## Learning rates of sgd" in report and "searched by Optuna" in report
    assert list(first.glob("checkpoints/*.ckpt"))
