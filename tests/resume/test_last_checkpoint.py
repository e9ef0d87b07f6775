"""Which checkpoint `--ckpt_path last` is."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rlsgd.resume import AtomicCheckpointIO
from rlsgd.resume.command_line import is_requeued, last_checkpoint

GIVEN = {"model": {"class_path": "GRPO"}, "data": {"seed": 1}, "seed_everything": 1}
OTHER = {**GIVEN, "seed_everything": 2}
NEW = "20300101-000000"  # what the command names a new run's folder


def settings(folder: Path, version: str | None = NEW) -> Any:
    loggers = [] if version is None else [logger(folder, version), logger(folder, version)]
    return SimpleNamespace(trainer=SimpleNamespace(default_root_dir=folder, logger=loggers))


def logger(folder: Path, version: str) -> Any:
    init_args = SimpleNamespace(save_dir=folder, name="fit", version=version)
    return SimpleNamespace(init_args=init_args)


def make_run(folder: Path, config: Any, *epochs: int, age: int = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "trainer": {"max_epochs": 9}}))
    for epoch in epochs:
        path = folder / "checkpoints" / f"iteration={epoch}.ckpt"
        AtomicCheckpointIO().save_checkpoint({"epoch": epoch}, path)
        os.utime(path, (1000 - 100 * age + epoch,) * 2)
    return folder


def test_the_newest_run_of_the_same_model_data_and_seed(tmp_path):
    make_run(tmp_path / "fit/20200101-000000", GIVEN, 8, 9, age=2)
    same = make_run(tmp_path / "fit/20200102-000000", GIVEN, 1, 2, age=1)
    make_run(tmp_path / "fit/20200103-000000", OTHER, 5)
    make_run(tmp_path / "fit/20200104-000000", GIVEN)
    found = settings(tmp_path)
    assert last_checkpoint(found, given=GIVEN, go_on=True) == same / "checkpoints/iteration=2.ckpt"
    versions = [part.init_args.version for part in found.trainer.logger]
    assert versions == [same.name] * 2, "its logs go on where they were"


def test_an_evaluation_writes_to_a_folder_of_its_own(tmp_path):
    same = make_run(tmp_path / "fit/20200102-000000", GIVEN, 1)
    found = settings(tmp_path)
    path = last_checkpoint(found, given=GIVEN, go_on=False)
    assert path == same / "checkpoints/iteration=1.ckpt"
    assert found.trainer.logger[0].init_args.version == NEW


def test_a_folder_of_the_users_choice_is_taken_as_it_is(tmp_path):
    own = make_run(tmp_path / "fit/mine", OTHER, 3)
    make_run(tmp_path / "fit/20200102-000000", GIVEN, 5)
    path = last_checkpoint(settings(tmp_path, "mine"), given=GIVEN, go_on=True)
    assert path == own / "checkpoints/iteration=3.ckpt"


def test_without_loggers_it_is_the_root_folder(tmp_path):
    own = make_run(tmp_path / "root", GIVEN, 3)
    path = last_checkpoint(settings(own, None), given=GIVEN, go_on=True)
    assert path == own / "checkpoints/iteration=3.ckpt"


def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path, capsys):
    own = make_run(tmp_path / "root", GIVEN, 3, 4)
    damaged = own / "checkpoints/iteration=4.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    os.utime(damaged, (2000, 2000))
    path = last_checkpoint(settings(own, None), given=GIVEN, go_on=True)
    assert path == own / "checkpoints/iteration=3.ckpt"
    assert "iteration=4.ckpt is damaged" in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tmp_path):
    own = make_run(tmp_path / "root", GIVEN, 3)
    (own / "checkpoints/iteration=3.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^--ckpt_path .*iteration=3\.ckpt is damaged"):
        last_checkpoint(settings(own, None), given=GIVEN, go_on=True)


def test_a_run_that_never_saved_starts_over(tmp_path, capsys):
    own = make_run(tmp_path / "root", GIVEN)
    assert last_checkpoint(settings(own, None), given=GIVEN, go_on=True) is None
    assert last_checkpoint(settings(tmp_path), given=GIVEN, go_on=True) is None
    assert capsys.readouterr().err.count("starting from the beginning") == 2


def test_the_folder_of_another_run_is_not_started_over(tmp_path):
    own = make_run(tmp_path / "root", OTHER)
    with pytest.raises(ValueError, match=r"^--ckpt_path last: .*has no checkpoint"):
        last_checkpoint(settings(own, None), given=GIVEN, go_on=True)


def test_an_evaluation_needs_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"^--ckpt_path last: no run of this model, data and seed"):
        last_checkpoint(settings(tmp_path), given=GIVEN, go_on=False)


@pytest.mark.parametrize(("count", "expected"), [(None, False), ("0", False), ("2", True)])
def test_slurm_says_how_often_it_started_the_job(count, expected, monkeypatch):
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if count is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    assert is_requeued() is expected
