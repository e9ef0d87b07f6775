"""Logs go back to their checkpoint, and nobody else's files are touched."""

import csv
import json
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rlsgd.resume.files import checkpoints_in
from rlsgd.resume.history import (
    KEPT,
    SET_ASIDE,
    SIZES,
    TABLE,
    log_sizes,
    rewind,
    start_over,
)

EPOCHS = 4


def record(epoch: int) -> str:
    return json.dumps({"epoch": epoch, "value": epoch / 8}) + "\n"


def log_epoch(trainer: Trainer, folder: Path, epoch: int) -> None:
    """A row, another with a column that comes in epoch 2, a record, an event."""
    rows = [{"loss": epoch / 4}, {"late": 1.0} if epoch == 2 else {"reward": 0.5}]
    for logger in trainer.loggers:
        for row in rows:
            logger.log_metrics({**row, "epoch": epoch}, step=epoch)
        logger.save()
    with (folder / "update_sparsity.jsonl").open("a") as file:
        file.write(record(epoch))


def make_trainer(folder: Path, *, with_loggers: bool = True) -> Trainer:
    loggers = [cls(folder, name="", version="") for cls in (TensorBoardLogger, CSVLogger)]
    return Trainer(
        default_root_dir=folder, logger=loggers if with_loggers else False, accelerator="cpu"
    )


def checkpoint_of(sizes: dict[str, int], epoch: int) -> dict:
    progress = {"epoch_progress": {"current": {"processed": epoch}}}
    return {SIZES: sizes, "epoch": epoch, "loops": {"fit_loop": progress}}


@pytest.fixture
def logged(tmp_path):
    """A folder after 4 epochs, and what the checkpoint after the second notes."""
    trainer, noted = make_trainer(tmp_path), {}
    for epoch in range(EPOCHS):
        log_epoch(trainer, tmp_path, epoch)
        if epoch == 1:
            noted = log_sizes(trainer)
    (tmp_path / "begun_later.jsonl").write_text(record(3))
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "iteration=2.ckpt"
    path.touch()
    return tmp_path, path, checkpoint_of(noted, 2)


def rows(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / TABLE).open(newline="") as file:
        return [(row["epoch"], row["loss"], row["reward"]) for row in csv.DictReader(file)]


def expected_rows(epochs: int) -> list[tuple[str, str, str]]:
    pairs = [[(str(e), str(e / 4), ""), (str(e), "", "0.5")] for e in range(epochs)]
    return [row for pair in pairs for row in pair]


def test_every_log_goes_back(logged):
    folder, path, checkpoint = logged
    trainer = make_trainer(folder)
    rewind(trainer, path, checkpoint)
    assert rows(folder) == expected_rows(2)
    assert (folder / "update_sparsity.jsonl").read_text() == record(0) + record(1)
    assert not (folder / "begun_later.jsonl").exists()
    [events] = folder.glob("events*")
    assert events.stat().st_size == checkpoint[SIZES][events.name]
    log_epoch(trainer, folder, 2)
    assert len(rows(folder)) == 6, "the logger goes on in the same table"


@pytest.mark.parametrize("crash", ["header", "line", "rewind"])
def test_a_table_that_a_crash_left_short_comes_from_its_copy(crash, logged):
    """Emptied for a new column, cut amid a line, or not yet written by the logger again."""
    folder, path, checkpoint = logged
    table = folder / TABLE
    if crash == "rewind":
        table.unlink()
    else:
        lines = table.read_text().splitlines(keepends=True)
        table.write_text("".join(lines[:1]) if crash == "header" else "".join(lines)[:-3])
    rewind(make_trainer(folder), path, checkpoint)
    assert rows(folder) == expected_rows(2)
    rewind(make_trainer(folder), path, checkpoint)
    assert rows(folder) == expected_rows(2), "and once more"


def test_the_copy_is_kept_until_there_is_another(logged):
    folder, path, checkpoint = logged
    rewind(make_trainer(folder), path, checkpoint)
    (folder / TABLE).unlink()
    rewind(make_trainer(folder), path, checkpoint)
    assert rows(folder) == expected_rows(2)


def test_a_checkpoint_of_another_callback_keeps_what_was_logged(logged, capsys):
    folder, path, checkpoint = logged
    del checkpoint[SIZES]
    checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] = 4
    rewind(make_trainer(folder), path, checkpoint)
    assert "not written by IterationCheckpoint" in capsys.readouterr().err
    assert len(rows(folder)) == 2 * EPOCHS
    assert (folder / "begun_later.jsonl").exists()


def test_a_checkpoint_of_another_folder_touches_nothing(logged, tmp_path_factory):
    folder, _, checkpoint = logged
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "iteration=2.ckpt"
    elsewhere.touch()
    rewind(make_trainer(folder), elsewhere, checkpoint)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_that_goes_back_sets_later_checkpoints_aside(logged):
    """Else a crash right after would go on from a later one, whose logs are gone."""
    folder, path, checkpoint = logged
    (folder / "checkpoints" / "iteration=10.ckpt").touch()
    rewind(make_trainer(folder), path, checkpoint)
    assert checkpoints_in(path.parent) == [path]
    assert (folder / "checkpoints" / f"iteration=10.ckpt{SET_ASIDE}").exists()


@pytest.mark.parametrize("tail", [b"\0" * 300, b"\0\0\n", b"\xff\xfe\n", b"3,1", b"x,y,z\n"])
@pytest.mark.parametrize("copy", ["whole", "gone", "broken too"])
def test_a_table_with_a_broken_end_keeps_its_whole_rows(tail, copy, logged, capsys):
    """Zeros are what a power loss leaves of blocks that were not written."""
    folder, path, checkpoint = logged
    with (folder / TABLE).open("ab") as file:
        file.write(tail)
    if copy == "gone":
        (folder / KEPT).unlink()
    elif copy == "broken too":
        (folder / KEPT).write_bytes(tail)
    rewind(make_trainer(folder), path, checkpoint)
    assert rows(folder) == expected_rows(2)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"rlsgd: {folder / TABLE}: the last {len(tail)} bytes are no whole rows; left out"
    ]


def test_starting_over_leaves_no_log(logged):
    folder, _, _ = logged
    start_over(make_trainer(folder))
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "hparams.yaml"}


def test_other_files_in_the_folder_are_left_alone(logged):
    """Without loggers a run writes where it is started, beside its user's own files."""
    folder, path, checkpoint = logged
    own = {
        "data.jsonl": '{"question": "1+1", "answer": "2"}\n',
        "predictions.jsonl": '{"prompt": "1+1"}\n',
        "events.out.tfevents.of-another-run": "x",
        "scratch-notes": None,
        "scratch-abcd1234": None,
    }
    for name, text in own.items():
        if text is None:
            (folder / name).mkdir()
            (folder / name / "notes.txt").write_text("mine")
        else:
            (folder / name).write_text(text)
    killed = folder / "scratch-a1b2c3d4"
    killed.mkdir()
    (killed / "000000.safetensors").touch()
    rewind(make_trainer(folder, with_loggers=False), path, checkpoint)
    assert {name for name in own if (folder / name).exists()} == own.keys()
    assert [(folder / n).read_text() for n, t in own.items() if t] == [t for t in own.values() if t]
    assert not killed.exists()
    assert (folder / "update_sparsity.jsonl").read_text() == record(0) + record(1)
    assert (folder / KEPT).exists()
