"""Which checkpoint `--ckpt_path last` is."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlsgd.core.run_folder import ORDER
from rlsgd.resume import AtomicCheckpointIO
from rlsgd.resume.command_line import is_requeued, last_checkpoint

GIVEN = {"model": {"class_path": "GRPO"}, "data": {"seed": 1}, "seed_everything": 1}
OTHER = {**GIVEN, "seed_everything": 2}


def make_run(folder: Path, config: Any, *epochs: int, order: int = 1) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "trainer": {"max_epochs": 9}}))
    for epoch in epochs:
        path = folder / "checkpoints" / f"iteration={epoch}.ckpt"
        AtomicCheckpointIO().save_checkpoint({"epoch": epoch}, path)
        os.utime(path, (1000 - epoch,) * 2)  # a clock that is set back all the time
    (folder / ORDER).write_text(str(order))
    return folder


def last(named: Path | None, root: Path, *, go_on: bool = True) -> Path | None:
    return last_checkpoint(named, root, given=GIVEN, go_on=go_on)


def test_the_run_of_the_same_model_data_and_seed_that_was_started_last(tmp_path):
    """Whatever the times of files and the names of folders say."""
    make_run(tmp_path / "20200109-000000", GIVEN, 8, 9, order=1)
    same = make_run(tmp_path / "20200102-000000", GIVEN, 9, 10, order=2)
    make_run(tmp_path / "20200103-000000", OTHER, 5, order=3)
    make_run(tmp_path / "20200104-000000", GIVEN, order=4)
    assert last(None, tmp_path) == same / "checkpoints/iteration=10.ckpt"
    assert last(None, tmp_path, go_on=False) == same / "checkpoints/iteration=10.ckpt"


def test_a_folder_of_the_users_choice_is_taken_as_it_is(tmp_path):
    own = make_run(tmp_path / "mine", OTHER, 3)
    make_run(tmp_path / "20200102-000000", GIVEN, 5)
    assert last(own, tmp_path) == own / "checkpoints/iteration=3.ckpt"


def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path, capsys):
    own = make_run(tmp_path / "root", GIVEN, 3, 4)
    damaged = own / "checkpoints/iteration=4.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    assert last(own, tmp_path) == own / "checkpoints/iteration=3.ckpt"
    assert "iteration=4.ckpt is damaged" in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path):
    own = make_run(tmp_path / "root", GIVEN, 3)
    (own / "checkpoints/iteration=3.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^--ckpt_path .*iteration=3\.ckpt is damaged"):
        last(own, tmp_path)


def test_a_run_that_never_saved_starts_over(tmp_path, capsys):
    own = make_run(tmp_path / "root", GIVEN)
    assert last(own, tmp_path) is None
    assert last(None, tmp_path) is None
    assert capsys.readouterr().err.count("starting from the beginning") == 2


def test_the_folder_of_another_run_is_not_started_over(tmp_path):
    own = make_run(tmp_path / "root", OTHER)
    with pytest.raises(ValueError, match=r"^--ckpt_path last: .*has no checkpoint"):
        last(own, tmp_path)


def test_the_nearest_of_other_runs_is_named_with_both_values(tmp_path, monkeypatch):
    """A run of other settings is not gone on with, and no run is begun in its place."""

    def config(rate: float, seed: int, samples: int = 0) -> dict[str, Any]:
        arguments = {"optimizer": {"class_path": "SGD", "init_args": {"lr": rate}}}
        arguments["eval_samples"] = samples
        model = {"class_path": "GRPO", "init_args": arguments}
        return {"model": model, "data": {"seed": 1}, "seed_everything": seed}

    make_run(tmp_path / "far", config(0.1, 2), 3, order=3)
    make_run(tmp_path / "before", config(0.1, 1), 3, order=1)
    near = make_run(tmp_path / "near", config(0.4, 1), 3, order=2)
    given = config(0.2, 1)
    with pytest.raises(ValueError) as refused:
        last_checkpoint(None, tmp_path, given=given, go_on=True)
    assert str(refused.value).startswith(
        f"--ckpt_path last: no run of this model, data and seed under {tmp_path} has a checkpoint; "
        f"the nearest, {near}, differs in --model.optimizer.lr 0.2 (there 0.4): "
    )
    # what may change makes no other run
    found = last_checkpoint(None, tmp_path, given=config(0.4, 1, samples=4), go_on=True)
    assert found == near / "checkpoints/iteration=3.ckpt"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # nobody is there to read a refusal
    assert last_checkpoint(None, tmp_path, given=given, go_on=True) is None


def test_an_evaluation_needs_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"^--ckpt_path last: no run of this model, data and seed"):
        last(None, tmp_path, go_on=False)


@pytest.mark.parametrize(("count", "expected"), [(None, False), ("0", False), ("2", True)])
def test_slurm_says_how_often_it_started_the_job(count, expected, monkeypatch):
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if count is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    assert is_requeued() is expected
