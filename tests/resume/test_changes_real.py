"""`rlsgd fit` itself: a changed rate is refused by `last` and by the file, more epochs are not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from rlsgd.cli.main import main

SMALL = (
    *(
        "fit",
        "--config",
        "configs/grpo_embedded.yaml",
        "--config",
        "configs/trainer/checkpoint.yaml",
    ),
    *("--data.val_problems", "4", "--data.prompts_per_epoch", "2", "--data.group_size", "4"),
    *("--trainer.callbacks", "[]", "--trainer.enable_progress_bar", "false"),
)


def test_a_run_goes_on_with_its_own_settings_alone(tmp_path: Path, capfd: Any):
    folder = tmp_path / "run"
    start = [*SMALL, f"--trainer.default_root_dir={folder}", "--model.optimizer.lr", "0.003"]
    assert main([*start, "--trainer.max_epochs", "1"]) == 0
    checkpoint = folder / "checkpoints" / "iteration=1.ckpt"
    config = (folder / "config.yaml").read_bytes()
    capfd.readouterr()
    for which in ("last", str(checkpoint)):
        changed = ["--trainer.max_epochs", "1", "--model.optimizer.lr", "0.5"]
        assert main([*start, *changed, "--ckpt_path", which]) == 2
        (line,) = [one for one in capfd.readouterr().err.splitlines() if "error: " in one]
        assert line == (
            f"rlsgd: error: --model.optimizer.lr 0.5: the run of --ckpt_path {checkpoint} has "
            "0.003, and this cannot change when a run goes on; start a new run, or leave it as it "
            "was"
        )
        assert (folder / "config.yaml").read_bytes() == config
    assert main([*start, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    assert "rlsgd: --trainer.max_epochs 2 from here on; it was 1" in capfd.readouterr().out
    with (folder / "metrics.csv").open() as file:
        assert {row["epoch"] for row in csv.DictReader(file) if row["loss"]} == {"0", "1"}
