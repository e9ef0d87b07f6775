"""W&B, MLflow and Trackio hold what TensorBoard holds of one run, read from their own files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers.logger import DummyLogger

from rlsgd.callbacks import loggers
from rlsgd.callbacks.loggers import markdown_table
from rlsgd.integrations.trackio import TrackioLogger
from tests.helpers.logger_stores import (
    Store,
    mlflow_store,
    plain,
    tensorboard_store,
    trackio_store,
    wandb_store,
)

PAGE = Path("docs/loggers.md").read_text()
FIT = [
    *("--trainer.max_epochs=2", "--data.prompts_per_epoch=4", "--data.group_size=2"),
    *("--data.val_problems=4", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=1e-4"),
    "--trainer.callbacks+={class_path: OptimizerDynamics, init_args: {every_n_epochs: 1}}",
]
STORES = {"wandb": wandb_store, "mlflow": mlflow_store, "trackio": trackio_store}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a fit has run, with the config of the page: every logger at once, none online."""
    folder = tmp_path_factory.mktemp("work")
    (config,) = (part for part in PAGE.split("```yaml\n")[1:] if "WandbLogger" in part)
    (folder / "loggers.yaml").write_text(config.partition("```")[0])
    command = [sys.executable, "-m", "rlsgd", "fit", "--config", "grpo_embedded"]
    with (folder / "output.txt").open("w") as output:
        subprocess.run(
            [*command, "--config", "loggers.yaml", *FIT],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return folder


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    (folder,) = (work / "runs/fit").iterdir()
    return folder


@pytest.fixture(scope="module")
def tensorboard(run: Path) -> Store:
    return tensorboard_store(run)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, run: Path) -> Store:
    return STORES[request.param](run)


def test_the_same_scalars(store: Store, tensorboard: Store):
    """TensorBoard rounds to float32; the others keep what was logged."""
    expected = {place: v for place, v in tensorboard.scalars.items() if place[0] != "hp_metric"}
    found = {place: np.float32(values).tolist() for place, values in store.scalars.items()}
    assert found == expected
    assert {"reward", "val/accuracy", "update/unchanged_bf16"} <= {tag for tag, _ in found}


def test_numbers_are_kept_exactly(store: Store, run: Path):
    rows = [row for row in csv.DictReader((run / "metrics.csv").open()) if row["grad_norm"]]
    expected = [float(row["grad_norm"]) for row in rows]
    found = [store.scalars["grad_norm", int(row["step"])] for row in rows]
    assert found == [[value] for value in expected] and len(rows) == 2


def test_the_same_tables(store: Store, tensorboard: Store, run: Path):
    shown = {place: markdown_table(*table) for place, table in store.tables.items()}
    assert shown == {place: rows[0][0] for place, (_, rows) in tensorboard.tables.items()}
    records = [json.loads(line) for line in (run / "completions.jsonl").open()]
    for (tag, step), (columns, rows) in store.tables.items():
        assert (tag, columns) == ("completions", ["prompt", "completion", "answer", "reward"])
        own = [record for record in records if record["global_step"] == step]
        assert rows == [[record[name] for name in columns] for record in own]
    assert len(store.tables) == 1


def test_the_same_images_to_the_pixel(store: Store, tensorboard: Store):
    assert store.images.keys() == tensorboard.images.keys()
    assert {tag for tag, _ in store.images} >= {
        "update/unchanged_bf16_by_layer",
        "update/effective_rank_percent_by_layer",
        "dynamics/head_rows",
    }
    for place, image in tensorboard.images.items():
        assert np.array_equal(store.images[place], image) and image.std() > 0


def test_the_same_hyperparameters_as_they_ran(store: Store, tensorboard: Store, run: Path):
    found = {key: plain(value) for key, value in store.hyperparameters.items()}
    assert found == {key: plain(value) for key, value in tensorboard.hyperparameters.items()}
    [optimizer] = json.loads((run / "provenance.json").read_text())["optimizers"]
    arguments = {f"optimizer/{name}": value for name, value in optimizer["arguments"][0].items()}
    assert found == arguments | {"optimizer/class": "torch.optim.AdamW"}
    assert found["optimizer/betas"] == [0.9, 0.999] and found["optimizer/lr"] == 1e-4


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_same_histograms(name: str, tensorboard: Store, run: Path):
    found = STORES[name](run).histograms
    assert found.keys() == tensorboard.histograms.keys() and len(found) > 0
    for place, counts in tensorboard.histograms.items():
        assert [int(n) for n in found[place]] == counts


def test_what_a_logger_has_no_form_for_is_said_once(work: Path):
    lines = [line for line in (work / "output.txt").open() if "is sent no" in line]
    assert [line.partition(": it has")[0] for line in lines] == [
        "rlsgd: warning: MLFlowLogger is sent no histograms"
    ]


def test_everything_is_in_the_runs_folder(work: Path, run: Path):
    assert {path.name for path in work.iterdir()} == {"loggers.yaml", "output.txt", "runs"}
    assert {"wandb", "mlflow.db", "mlartifacts", "trackio"} <= {p.name for p in run.iterdir()}


class OwnLogger(DummyLogger):
    """No class of Lightning's that is known to hold numbers alone."""


def test_a_logger_of_ones_own_is_told_what_to_register(capsys: pytest.CaptureFixture[str]):
    loggers._say_what_is_missing.cache_clear()
    for step in (1, 2):
        loggers.add_table(OwnLogger(), "completions", ["prompt"], [["2+2="]], step)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "OwnLogger is sent no tables" in told
    taken = []
    loggers.add_table.register(OwnLogger, lambda *arguments: taken.append(arguments[1:]))
    loggers.add_table(OwnLogger(), "completions", ["prompt"], [["2+2="]], 3)
    assert taken == [("completions", ["prompt"], [["2+2="]], 3)]


def test_trackio_writes_to_one_folder_in_a_process(tmp_path: Path):
    code = """
from pathlib import Path
from rlsgd.integrations.trackio import TrackioLogger
TrackioLogger(save_dir="one").log_metrics({"a": 1.5}, step=3)
TrackioLogger(save_dir="one")
TrackioLogger(save_dir="two")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"ValueError: save_dir two: Trackio writes to {tmp_path}/one as long" in done.stderr


def test_a_missing_trackio_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rlsgd\[trackio\]'"):
        TrackioLogger()
