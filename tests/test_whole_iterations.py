"""An iteration is trained on whole, or refused: a microbatch counts on the others of its step."""

import csv
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from rlsgd.cli.main import main

CONFIG = "configs/grpo_embedded.yaml"
SMALL = [
    *("--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    "--trainer.enable_checkpointing=true",
    *("--data.prompts_per_epoch=4", "--data.group_size=4", "--data.val_problems=0"),
]
SCHEDULE = "[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 1, 1: 4}}}]"


class StopsEarly(Callback):
    """Somebody's own, of which nobody here knows."""

    def on_train_batch_end(self, trainer, *args) -> None:
        trainer.should_stop = True


def fit(folder: Path, *arguments: str, config: str = CONFIG) -> int:
    root = f"--trainer.default_root_dir={folder}"
    return main(["fit", "--config", config, *SMALL, root, *arguments])


def norms(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [row["grad_norm"] for row in csv.DictReader(file) if row.get("grad_norm")]


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--trainer.accumulate_grad_batches=0"], "--trainer.accumulate_grad_batches 0"),
        ([f"--trainer.callbacks={SCHEDULE}"], "GradientAccumulationScheduler {0: 1, 1: 4}"),
        (["--trainer.limit_train_batches=2", "4"], "--trainer.limit_train_batches 2"),
        (["--trainer.limit_train_batches=0.5", "4"], "--trainer.limit_train_batches 0.5"),
        (["--trainer.limit_train_batches=0"], "--trainer.limit_train_batches 0"),
        (["--trainer.overfit_batches=1", "2"], "--trainer.overfit_batches 1"),
        (["--trainer.max_steps=3", "--model.minibatches=2"], "--trainer.max_steps 3"),
        (["--trainer.min_steps=3", "--model.inner_epochs=2"], "--trainer.min_steps 3"),
        (["--trainer.min_epochs=3"], "--trainer.min_epochs 3"),
        (["--trainer.max_epochs=-5"], "--trainer.max_epochs -5"),
        (["--trainer.max_steps=-3"], "--trainer.max_steps -3"),
    ],
)
def test_a_part_of_an_iteration_is_refused(arguments, flag, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlsgd.rollout.sampler.HFSampler.sample", None)  # nothing is sampled
    if arguments[-1].isdigit():
        arguments = [arguments[0], f"--trainer.accumulate_grad_batches={arguments[1]}"]
    assert fit(tmp_path / "run", *arguments) == 2
    assert flag in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_what_nobody_thought_of_is_counted(tmp_path, capsys):
    """A callback ends the epoch after one of four microbatches."""
    callback = f"--trainer.callbacks+={__name__}.StopsEarly"
    assert fit(tmp_path / "run", callback, "--trainer.accumulate_grad_batches=4") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "iteration 0 trained on 1 microbatches" in error and "its rollout has 4 in 1" in error
    assert not list(tmp_path.rglob("*.ckpt"))


def test_time_that_runs_out_lets_the_iteration_end(tmp_path):
    """Timer would stop after the first of its four minibatches."""
    code = fit(
        tmp_path / "run",
        "--trainer.max_time=00:00:00:01",
        *("--model.minibatches=4", "--trainer.max_epochs=400", "--trainer.min_epochs=1"),
    )
    assert code == 0
    [name, *_] = sorted(path.name for path in tmp_path.rglob("iteration=*.ckpt"))
    assert name != "iteration=400.ckpt"


@pytest.mark.parametrize("steps", ["--trainer.max_steps=2", "--trainer.limit_train_batches=9"])
def test_whole_iterations_train_as_without_a_limit(steps, tmp_path):
    assert fit(tmp_path / "limited", steps) == fit(tmp_path / "plain") == 0
    assert norms(tmp_path / "limited") == norms(tmp_path / "plain")


def test_supervised_batches_may_be_fewer_in_whole_steps(tmp_path, capsys):
    sft = ["--data.batches_per_epoch=4", "--data.batch_size=4", "--trainer.max_epochs=2"]
    sft += ["--trainer.accumulate_grad_batches=2", "--data.val_problems=0"]
    command = ["fit", "--config=configs/sft_embedded.yaml", *sft]
    command += ["--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=true"]
    root = tmp_path / "run"
    command += [f"--trainer.default_root_dir={root}"]
    assert main([*command, "--trainer.limit_train_batches=3"]) == 2
    assert "--trainer.limit_train_batches 3" in capsys.readouterr().err.splitlines()[-1]
    assert main([*command, "--trainer.limit_train_batches=2", "--trainer.max_steps=2"]) == 0
    assert sorted(path.name for path in (root / "checkpoints").iterdir()) == [
        "iteration=1.ckpt",
        "iteration=2.ckpt",
    ]


def test_a_checkpoint_from_inside_an_epoch_is_not_gone_on_from(tmp_path, capsys):
    """Going on would skip the batches that the step limit left out."""
    command = ["fit", "--config=configs/sft_embedded.yaml", "--data.batches_per_epoch=4"]
    command += ["--data.batch_size=4", "--data.val_problems=0", "--trainer.max_epochs=3"]
    command += [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_checkpointing=true"]
    assert main([*command, "--trainer.max_steps=6"]) == 0
    assert main([*command, "--ckpt_path=last"]) == 2
    assert "was saved inside an epoch, after 2" in capsys.readouterr().err.splitlines()[-1]
