"""What a newcomer writes outside the package works by class path: README's own example, trained."""

import re
import subprocess
import sys
from pathlib import Path

import torch

from rlsgd.cli.training import TrainingCLI

README = Path("README.md").read_text()
SMALL = [
    *("--trainer.logger=false", "--trainer.callbacks=[]", "--trainer.max_epochs=2"),
    *("--data.prompts_per_epoch=4", "--data.group_size=4", "--data.val_problems=4"),
]


def example() -> str:
    [code] = re.findall(r"```python\n(# centred\.py.*?)```", README, re.DOTALL)
    return code


def test_the_example_of_a_new_algorithm_is_under_20_lines():
    assert len(example().splitlines()) < 20


def test_a_new_algorithm_trains_by_class_path(tmp_path, monkeypatch):
    (tmp_path / "centred.py").write_text(example())
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = []
    import centred  # pyright: ignore

    original = centred.CentredGRPO.advantages

    def recorded(self, rollouts, group_size):
        advantages = original(self, rollouts, group_size)
        seen.append((rollouts.rewards, advantages))
        return advantages

    monkeypatch.setattr(centred.CentredGRPO, "advantages", recorded)
    config = ["--config", "configs/grpo_embedded.yaml", "--model", "centred.CentredGRPO"]
    root = f"--trainer.default_root_dir={tmp_path}"
    cli = TrainingCLI.run(["fit", *config, *SMALL, root])
    assert type(cli.model) is centred.CentredGRPO and cli.trainer.global_step == 2
    for rewards, advantages in seen:
        torch.testing.assert_close(advantages, rewards - rewards.mean(), rtol=0, atol=0)
    # the rest of the config was kept through the change of class
    assert cli.model.max_completion_tokens == 6
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 3.0e-3


def test_a_class_that_is_no_policy_module_is_refused(tmp_path):
    (tmp_path / "wrong.py").write_text("class Wrong:\n    pass\n")
    command = [
        sys.executable,
        "-m",
        "rlsgd",
        "fit",
        "--config",
        "configs/grpo_embedded.yaml",
    ]
    done = subprocess.run(
        [*command, "--model", "wrong.Wrong"],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "wrong.Wrong" in done.stderr
