"""The overlays in configs/trainer, and the command line starting two sharded processes itself."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlsgd.cli.training import TrainingCLI

CONFIG = Path("configs/grpo_embedded.yaml").absolute()
OVERLAYS = {path.stem: path.absolute() for path in Path("configs/trainer").glob("*.yaml")}


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_states_its_command_and_wins_over_the_config(name, capsys):
    overlay = OVERLAYS[name]
    first, expected = overlay.read_text().splitlines()[0], yaml.safe_load(overlay.read_text())
    assert first.startswith("# rlsgd fit") and f"configs/trainer/{name}.yaml" in first
    with pytest.raises(SystemExit):
        TrainingCLI.run(["fit", f"--config={CONFIG}", f"--config={overlay}", "--print_config"])
    merged = yaml.safe_load(capsys.readouterr().out)["trainer"]
    strategy = expected["trainer"].pop("strategy", None)
    assert {name: merged[name] for name in expected["trainer"]} == expected["trainer"]
    if strategy is not None:
        assert merged["strategy"]["class_path"] == strategy["class_path"]
        assert merged["strategy"]["init_args"].items() >= strategy["init_args"].items()
    assert merged["max_epochs"] == yaml.safe_load(CONFIG.read_text())["trainer"]["max_epochs"]


@pytest.mark.slow
def test_two_processes_from_the_command_line(tmp_path):
    flags = {
        "trainer.accelerator": "cpu",
        "trainer.devices": 2,
        "trainer.precision": "32-true",
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.enable_checkpointing": "true",
        "data.prompts_per_epoch": 2,
        "data.val_problems": 3,
    }
    command = ["fit", f"--config={CONFIG}", f"--config={OVERLAYS['fsdp']}"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "rlsgd.cli.main", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Starting with 2 processes" in done.stderr + done.stdout
    (metrics,) = tmp_path.rglob("metrics.csv")
    with metrics.open() as file:
        logged = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {"loss", "val/accuracy", "update/unchanged_fp32", "update/effective_rank"} <= logged
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert len(list(checkpoint.glob("*.distcp"))) == 2, "each rank writes its shards"
