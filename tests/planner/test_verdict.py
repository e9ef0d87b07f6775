"""Commands for a GPU fit the GPU that they name, and a run that does not is refused beforehand."""

import inspect
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlsgd import algorithms, data
from rlsgd.cli.main import main
from rlsgd.core.composition import composed
from rlsgd.planner.architecture import Architecture, load_architecture
from rlsgd.planner.verdict import plan_of, require_fit, setup_of

PUBLISHED = {
    "Qwen/Qwen3-1.7B": "qwen3-1.7b",
    "Qwen/Qwen3-8B": "qwen3-8b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
}
PRESETS = [p for p in sorted(Path("configs/paper").glob("*_*.yaml")) if "pretrain" not in p.stem]
GPU = 80e9
CONFIG = "configs/grpo_embedded.yaml"
SMALL = [
    *("--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--data.val_problems=0"),
    *("--data.prompts_per_epoch=8", "--data.group_size=4", "--trainer.callbacks=null"),
]


@cache
def architecture(name: str) -> Architecture:
    return load_architecture(name)


def defaults(kind: type) -> dict[str, Any]:
    """Those of all constructors, a subclass's before its base's."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        for name, parameter in inspect.signature(base.__init__).parameters.items():
            found.setdefault(name, parameter.default)
    return found


def complete(settings: dict[str, Any]) -> dict[str, Any]:
    """With the defaults that the command line would add."""
    for part, room in (("model", algorithms), ("data", data)):
        given = settings[part]
        kind = getattr(room, given["class_path"].rpartition(".")[2])
        given["init_args"] = defaults(kind) | given["init_args"]
    return settings


def settings_of(command: str) -> tuple[dict[str, Any], int]:
    """The settings of a command, and the GPUs that it is for: one, or eight with shards."""
    words = shlex.split(command.replace("\\\n", " "))
    configs = [words[i + 1] for i, word in enumerate(words) if word == "--config"]
    settings = composed(Path(configs[0]))
    flags = [word.removeprefix("--") for word in words[2:]]
    for name, value in zip(flags[::2], flags[1::2], strict=True):
        part, *path = name.split(".")
        if part == "config" or path[0] == "task" or path[0] == "reward":
            continue
        place = settings[part] if part == "trainer" else settings[part]["init_args"]
        for key in path[:-1]:
            place = place[key].setdefault("init_args", {})
        is_class = path[-1] == "sampler"
        place[path[-1]] = {"class_path": value} if is_class else yaml.safe_load(value)
    sharded = any(config.endswith("fsdp.yaml") for config in configs)
    if sharded:
        settings["trainer"]["strategy"] = composed(Path(configs[-1]))["trainer"]["strategy"]
    return complete(settings), 8 if sharded else 1


def start_command() -> str:
    text = Path("docs/start.md").read_text().partition("**Qwen3-1.7B on a GPU of 80 GB.**")[2]
    found = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


COMMANDS = {preset.stem: preset.read_text().splitlines()[0][2:] for preset in PRESETS}
COMMANDS["docs/start.md"] = start_command()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_fits_the_gpu_that_it_names(name: str):
    settings, gpus = settings_of(COMMANDS[name])
    model, setup = architecture(PUBLISHED[settings["model"]["init_args"]["policy"]]), None
    setup = setup_of(settings, gpus)
    assert setup is not None and setup.precision == "bf16-mixed"
    assert setup.reference and setup.activation_checkpointing
    planned = plan_of(settings, model, setup)
    assert planned.peak <= GPU, planned.peaks
    require_fit(settings, model, setup, GPU)
    # more at a time would not: the whole rollout at once is many times too much
    settings["model"]["init_args"]["sampler"]["init_args"]["batch_size"] = 0
    setup = setup_of(settings, gpus)
    assert setup is not None
    with pytest.raises(ValueError, match=r"--model\.sampler\.init_args\.batch_size 0: .*GB"):
        require_fit(settings, model, setup, GPU / 2 if setup.rows < 256 else GPU)


def fit(folder: Path, *arguments: str) -> int:
    root = f"--trainer.default_root_dir={folder}"
    return main(["fit", "--config", CONFIG, *SMALL, root, *arguments])


def test_a_run_that_cannot_fit_is_refused_before_it_samples(tmp_path, capsys, monkeypatch):
    """The number that is named is the largest half, quarter, ... that fits, and it does fit."""
    monkeypatch.setattr("rlsgd.cli.checks.device_bytes", lambda trainer: 62_000_000)

    def sample(*args: Any, **kwargs: Any) -> None:
        raise ValueError("sampling began")

    monkeypatch.setattr("rlsgd.algorithms.rl.sample_and_score", sample)
    long = ["--model.max_completion_tokens=300", "--trainer.accumulate_grad_batches=32"]
    assert fit(tmp_path / "run", *long) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    found = re.search(r"batch_size 0: .* MB at \w+, .* 62.0 MB .*Set it to (\d+),", error)
    assert found is not None and 1 <= int(found[1]) < 32, error
    sampler = ["--model.sampler=rlsgd.rollout.HFSampler", "--model.sampler.batch_size"]
    sampler[1] += f"={found[1]}"
    assert fit(tmp_path / "fits", *long, *sampler) == 2
    assert "sampling began" in capsys.readouterr().err.splitlines()[-1]


def test_weights_that_are_too_many_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlsgd.cli.checks.device_bytes", lambda trainer: 1_000_000)
    assert fit(tmp_path / "run") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--trainer.devices 1: `rlsgd memory` plans" in error and "1.00 MB" in error
    assert not (tmp_path / "run").exists()
