"""Every shipped config parses and runs two epochs, with only sizes and lengths reduced."""

import copy
from pathlib import Path

import pytest
import yaml

from rlsgd.cli.training import TrainingCLI
from rlsgd.core.composition import composed
from rlsgd.models.loading import EMBEDDED
from rlsgd.study.arms import load_study
from rlsgd.study.expansion import expand_runs
from tests.helpers.small_text import prepare_small_text

CONFIGS = [
    pytest.param(path, marks=pytest.mark.vllm if "VLLMSampler" in path.read_text() else ())
    for path in sorted(Path("configs").glob("*.yaml"))
]
STUDIES = sorted(Path("configs/studies").glob("*.yaml"))
SMALLER = {
    "prompts_per_epoch": 4,
    "group_size": 4,
    "batches_per_epoch": 2,
    "batch_size": 4,
    "val_problems": 4,
    "sequence_length": 16,
    "val_blocks": 4,
}


@pytest.fixture(autouse=True)
def small_cache(tmp_path_factory, monkeypatch):
    """The text and the model that a config may name, in small."""
    cache = tmp_path_factory.getbasetemp() / "small-text-cache"
    if not cache.exists():
        prepare_small_text(cache)
    monkeypatch.setenv("RLSGD_CACHE", str(cache))


def reduced(config: Path, tmp_path: Path) -> list[str]:
    """Flags that make an experiment small enough for a test and keep everything else."""
    settings = composed(config)
    data, kind = settings["data"]["init_args"], settings["data"]["class_path"]
    is_text = kind == "TextDataModule"
    sizes = [k for k in SMALLER if k in data or (k == "val_problems" and not is_text)]
    flags = [f"--data.{name}={SMALLER[name]}" for name in sizes]
    assert ("batches_per_epoch" if kind != "PromptDataModule" else "prompts_per_epoch") in sizes
    if settings["model"]["init_args"]["policy"] != "embedded" and not is_text:
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
    evaluated = {"val/accuracy", "val/loss"} & set(trainer.callback_metrics)
    assert evaluated and "loss" in trainer.callback_metrics


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
    # one learning rate of each arm: the rates differ in a number only
    runs = {run.sweep or run.arm.name: run for run in first_seed}
    started_in = Path.cwd()
    for name, run in runs.items():
        config = (started_in / run.config).absolute()
        flags = reduced(config, tmp_path)
        monkeypatch.chdir(tmp_path)
        overlay = copy.deepcopy(run.overlay)
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(overlay))
        root = f"--trainer.default_root_dir={run.folder}"
        if overlay.get("trainer", {}).get("accumulate_grad_batches", 1) > SMALLER["batch_size"]:
            flags.append(f"--trainer.accumulate_grad_batches={SMALLER['batches_per_epoch']}")
        cli = TrainingCLI.run(["fit", "--config", str(config), "--config", str(file), *flags, root])
        check_two_epochs(cli)
        assert (run.folder / "metrics.csv").exists()
