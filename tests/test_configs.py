"""Every shipped config parses and runs two epochs, with only sizes and lengths reduced."""

import copy
from pathlib import Path

import pytest
import yaml

from rlsgd.models import EMBEDDED
from rlsgd.study.arms import load_study
from rlsgd.study.expansion import expand_runs
from rlsgd.training_cli import TrainingCLI

CONFIGS = sorted(p for p in Path("configs").glob("*.yaml"))
STUDIES = sorted(Path("configs/studies").glob("*.yaml"))
SMALLER = {
    "prompts_per_epoch": 4,
    "group_size": 4,
    "batches_per_epoch": 2,
    "batch_size": 4,
    "val_problems": 4,
}


def reduced(config: Path, tmp_path: Path) -> list[str]:
    """Flags that make an experiment small enough for a test and keep everything else."""
    settings = yaml.safe_load(config.read_text())
    data = settings["data"]["init_args"]
    is_supervised = settings["data"]["class_path"] == "SolutionDataModule"
    sizes = [k for k in SMALLER if k in data or (k == "val_problems")]
    flags = [f"--data.{name}={SMALLER[name]}" for name in sizes]
    assert is_supervised or "prompts_per_epoch" in sizes
    if settings["model"]["init_args"]["policy"] != "embedded":
        flags.append(f"--model.policy={EMBEDDED}")
    return [
        *flags,
        "--trainer.max_epochs=2",
        "--trainer.check_val_every_n_epoch=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]


def check_two_epochs(cli: TrainingCLI) -> None:
    trainer = cli.trainer
    assert trainer.current_epoch == 2 and trainer.global_step >= 2
    assert "val/accuracy" in trainer.callback_metrics and "loss" in trainer.callback_metrics


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_config_runs_two_epochs(config, tmp_path, monkeypatch):
    flags = reduced(config, tmp_path)
    config = config.absolute()
    monkeypatch.chdir(tmp_path)
    check_two_epochs(TrainingCLI.run(["fit", "--config", str(config), *flags]))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_config_states_its_command_on_line_1(config):
    first = config.read_text().splitlines()[0]
    assert first.startswith("# ") and (str(config) in first or "tools/" in first)


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_study_states_its_command_and_every_arm_runs_two_epochs(path, tmp_path, monkeypatch):
    assert str(path) in path.read_text().splitlines()[0]
    study = load_study(path, out=tmp_path / "out")
    first_seed = [run for run in expand_runs(study) if run.seed == study.seeds[0]]
    flags = reduced(Path(study.config), tmp_path)
    # one learning rate of each arm: the rates differ in a number only
    runs = {run.sweep or run.arm.name: run for run in first_seed}
    config = Path(study.config).absolute()
    monkeypatch.chdir(tmp_path)
    for name, run in runs.items():
        overlay = copy.deepcopy(run.overlay)
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(overlay))
        root = f"--trainer.default_root_dir={run.folder}"
        cli = TrainingCLI.run(["fit", "--config", str(config), "--config", str(file), *flags, root])
        check_two_epochs(cli)
        assert (run.folder / "metrics.csv").exists()
