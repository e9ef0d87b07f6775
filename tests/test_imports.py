"""What a command does not import: the test of a quick start that needs no clock."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

REPORT = "import sys; print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}))"
# what `rlsgd --help` can do without; the first three alone take seconds
LATER = {
    "torch",
    "transformers",
    "lightning",
    "numpy",
    "jsonargparse",
    "yaml",
    "matplotlib",
    "rich",
}
# what training on sums can do without, though it is installed; vllm is where it is used
NEVER = {"datasets", "pyarrow", "pandas", "math_verify", "latex2sympy2_extended", "trl", "verl"}


def loaded(command: str, folder: Path) -> set[str]:
    """Top-level packages in a fresh process after `rlsgd COMMAND`."""
    code = f"from rlsgd.cli.main import main; assert main({command.split()!r}) == 0; {REPORT}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("package", sorted(LATER | NEVER))
def test_the_packages_named_here_could_be_imported(package: str):
    assert find_spec(package), "it is not installed, so that it is not imported says nothing"


@pytest.mark.parametrize("command", ["--help", "--version"])
def test_help_needs_none_of_what_training_needs(command: str, tmp_path: Path):
    packages = loaded(command, tmp_path)
    assert "rlsgd" in packages
    assert not packages & (LATER | NEVER)


def test_training_on_sums_imports_no_other_tasks_packages(tmp_path: Path):
    """An epoch with sampling, rewards and all default callbacks."""
    config = Path("configs/grpo_embedded.yaml").absolute()
    flags = "--trainer.max_epochs 1 --data.prompts_per_epoch 2 --data.val_problems 2"
    packages = loaded(f"fit --config {config} {flags}", tmp_path)
    assert {"torch", "transformers", "lightning", "reasoning_gym"} <= packages
    assert not packages & (NEVER | {"vllm"})


def test_deltas_need_no_torch(tmp_path: Path):
    """Importing torch and transformers took three times as long as packing SmolLM2."""
    weights = np.arange(64, dtype=np.float32)
    for name, shift in (("BASE", 0), ("TUNED", 1)):
        (tmp_path / name).mkdir()
        save_file(
            {"w": weights + np.float32(shift) * (weights == 3)},
            tmp_path / name / "model.safetensors",
        )
    pack, inspect = "delta pack BASE TUNED out.delta", "delta inspect out.delta"
    for command in (pack, inspect, "delta apply BASE out.delta out"):
        packages = loaded(command, tmp_path)
        assert "numpy" in packages
        assert not packages & (NEVER | {"torch", "transformers", "lightning", "huggingface_hub"})


def test_the_first_table_of_analyze_needs_no_torch(tmp_path: Path):
    """Torch is found to be missing after that table, whose numbers are by hand."""
    weights = np.arange(1, 101, dtype=np.float32)
    for name, shift in (("BASE", 0), ("TUNED", 1)):
        tensors = {"model.norm.weight": weights + np.float32(shift) * (weights == 3)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    code = """
import sys
from rlsgd.cli.main import main
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "lightning", "huggingface_hub"):
            raise ImportError(f"{name} is asked for")
sys.meta_path.insert(0, Stop())
main(["analyze", "BASE.safetensors", "TUNED.safetensors"])
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.stdout, run.stderr
    cells = [cell.strip() for cell in run.stdout.splitlines()[-2].split("│")[1:-1]]
    # |4 - 3| / sqrt(1 + 4 + ... + 10000) = 1 / sqrt(338350)
    assert cells == ["total", "100", "99", "99", "0.001719"]
    assert "torch is asked for" in run.stderr
