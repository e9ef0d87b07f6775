"""What docs/tutorial.md tells a newcomer to write and to run, written and run."""

import csv
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from rlsgd.cli.training import TrainingCLI
from rlsgd.core.types import Rollouts
from rlsgd.study.arms import load_study
from rlsgd.study.expansion import expand_runs

TUTORIAL = Path("docs/tutorial.md").read_text()
SMALL = [
    *("--trainer.max_epochs=2", "--data.prompts_per_epoch=4", "--data.group_size=4"),
    *("--data.val_problems=4", "--trainer.callbacks=rlsgd.callbacks.UpdateSparsity"),
]
FITS = [
    line
    for line in TUTORIAL.replace("\\\n", " ").splitlines()
    if re.match(r"(PYTHONPATH=\. )?rlsgd fit --config", line)
]


def block(language: str, name: str) -> str:
    """The block that begins with the comment `# NAME`."""
    [found] = re.findall(rf"```{language}\n(# {re.escape(name)}\n.*?)```", TUTORIAL, re.DOTALL)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the tutorial's files lie beside `configs`, as in a clone; Python finds them."""
    (tmp_path / "configs").symlink_to(Path("configs").resolve())
    for name in ("median.py", "top_share.py"):
        (tmp_path / name).write_text(block("python", name))
    (tmp_path / "mine.yaml").write_text(block("yaml", "mine.yaml"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(arguments: list[str], folder: Path) -> tuple[TrainingCLI, list[dict[str, str]]]:
    """A short run, and the rows of its metrics.csv."""
    logger = {"save_dir": str(folder / "logs"), "name": "", "version": ""}
    csv_logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger}
    overlay = folder / "small.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": {"logger": [csv_logger]}}))
    root = f"--trainer.default_root_dir={folder}"
    cli = TrainingCLI.run(["fit", *arguments, "--config", str(overlay), *SMALL, root])
    with (folder / "logs/metrics.csv").open() as file:
        return cli, list(csv.DictReader(file))


def test_the_median_is_the_baseline(folder):
    import median  # pyright: ignore

    rewards = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.25, 0.0, 1.0, 0.5])
    rollouts = Rollouts(*[torch.zeros(8, 1)] * 4, rewards=rewards)
    advantages = median.MedianGRPO.advantages(None, rollouts, 4)
    # medians 1 and, the lower of the two in the middle, 0.25
    assert advantages.tolist() == [-1.0, 0.0, 0.0, 0.0, 0.0, -0.25, 0.75, 0.25]


def test_only_the_largest_gradients_move_their_weights(folder):
    import top_share  # pyright: ignore

    weight, small = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2))
    frozen = nn.Parameter(torch.ones(1))
    weight.grad = torch.tensor([[1.0, -4.0, 0.5], [2.0, 3.0, -0.25]])
    small.grad = torch.tensor([-1.0, 2.0])
    optimizer = top_share.TopShareSGD([weight, small, frozen], lr=0.5, share=0.4)
    optimizer.step()
    # 0.4 * 6 = 2.4: the two largest, -4 and 3; of two weights at least one
    assert weight.tolist() == [[1.0, 3.0, 1.0], [1.0, -0.5, 1.0]]
    assert small.tolist() == [1.0, 0.0] and frozen.tolist() == [1.0]
    assert not optimizer.state
    with pytest.raises(ValueError, match=r"^--model\.optimizer\.init_args\.share 0 must be above"):
        top_share.TopShareSGD([weight], lr=0.5, share=0)


@pytest.mark.parametrize("line", FITS, ids=["rate", "algorithm", "optimizer"])
def test_every_fit_runs_and_shows_what_the_text_says(line, folder):
    words = shlex.split(line)
    cli, rows = fit(words[words.index("fit") + 1 :], folder)
    optimizer = cli.trainer.optimizers[0]
    assert cli.trainer.global_step == 2
    if "median" in line:
        assert type(cli.model).__name__ == "MedianGRPO"
    elif "top_share" in line:
        assert type(optimizer).__name__ == "TopShareSGD"
        assert optimizer.param_groups[0]["share"] == 0.05
        shares = [float(x) for row in rows if (x := row["update_step/unchanged_fp32"])]
        # 5% of each tensor, rounded down
        assert len(shares) == 2 and all(0.95 <= share < 0.951 for share in shares)
        since_start = [float(x) for row in rows if (x := row["update/unchanged_fp32"])]
        assert since_start[1] < since_start[0]
    else:
        assert optimizer.param_groups[0]["lr"] == 1e-3


def test_the_study_runs_its_own_algorithm_and_optimizer(folder):
    study = load_study(folder / "mine.yaml")
    runs = expand_runs(study)
    assert len(runs) == 3 * 3 * 3
    chosen = {run.sweep: run for run in runs if run.seed == 21}
    for name in ("top-share", "median"):
        run = chosen[name]
        overlay = folder / f"{name}.yaml"
        overlay.write_text(yaml.safe_dump(run.overlay))
        own = folder / f"{name}-run"
        own.mkdir()
        cli, _ = fit(["--config", os.fspath(run.config), "--config", str(overlay)], own)
        assert type(cli.model).__name__ == {"top-share": "GRPO", "median": "MedianGRPO"}[name]
        kinds = {"top-share": "TopShareSGD", "median": "SGD"}
        assert type(cli.trainer.optimizers[0]).__name__ == kinds[name]
