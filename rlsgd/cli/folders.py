"""Which folder a run writes to, in its settings before anything is made of them.

Every run has one of its own, whatever its loggers: `runs/fit/TIME`, or the one that
`--trainer.default_root_dir` or the loggers' `version` names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from rlsgd.callbacks.base import run_folder
from rlsgd.core.run_folder import RunFolder, holds_run
from rlsgd.resume.files import publish, unfinished

ROOT = {"save_dir": "runs", "name": "fit"}
OWN_PLACE = ("TensorBoardLogger", "CSVLogger")  # these write right into a folder of the run
WHEREVER = (None, "", ".", "./mlruns")  # where other loggers write unless they are told


def default_loggers() -> list[dict[str, Any]]:
    """TensorBoard and `metrics.csv`; a version of None is named by `fill`."""
    place = {**ROOT, "version": None}
    return [
        {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": place}
        for name in OWN_PLACE
    ]


def named_folder(trainer: Any) -> Path | None:
    """The folder that the settings name; None where it is for us to name."""
    if trainer.default_root_dir:
        return Path(trainer.default_root_dir)
    for place in _places(trainer):
        if place.version is not None:
            return _folder(place)
    return None


def root_folder(trainer: Any) -> Path:
    """Where runs are that nobody named."""
    for place in _places(trainer):
        return Path(place.save_dir) / str(place.name or "")
    return Path(ROOT["save_dir"], ROOT["name"])


def fill(trainer: Any, folder: Path) -> None:
    """Let everything write to `folder` whose place the settings leave open."""
    trainer.default_root_dir = str(folder)
    for place in _places(trainer):
        if place.version is not None:
            continue
        if Path(place.save_dir) / str(place.name or "") == folder.parent:
            place.version = folder.name
        elif (place.save_dir, place.name) == (ROOT["save_dir"], ROOT["name"]):
            place.save_dir, place.name, place.version = str(folder), "", ""
        else:
            place.version = folder.name
    for logger in _loggers(trainer):
        settings = getattr(logger, "init_args", None)
        if settings is None or _name(logger) in OWN_PLACE:
            continue
        if "save_dir" in settings and settings.save_dir in WHEREVER:
            PLACED.get(_name(logger), _in_folder)(settings, folder)


def _in_folder(settings: Any, folder: Path) -> None:
    settings.save_dir = str(folder)


def _mlflow(settings: Any, folder: Path) -> None:
    """A database, since MLflow keeps no more runs in plain files, and the artifacts beside it."""
    if not (settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")):
        place = folder.absolute()
        settings.tracking_uri = f"sqlite:///{place / 'mlflow.db'}"
        settings.artifact_location = settings.artifact_location or str(place / "mlartifacts")


def _trackio(settings: Any, folder: Path) -> None:
    if not os.environ.get("TRACKIO_DIR"):
        settings.save_dir = str(folder / "trackio")


PLACED = {"MLFlowLogger": _mlflow, "TrackioLogger": _trackio}  # what wants more than `save_dir`


def claim(folder: Path | None, root: Path, *, exclusive: bool, goes_on: bool) -> RunFolder | None:
    """Make and lock the folder of this run, on the first rank.

    Args:
        folder: that was named, or found to go on with; None to name one in `root`.
        root: where runs are that nobody named.
        exclusive: for a `fit`: an evaluation may write beside it.
        goes_on: with what is there; otherwise nothing of another run may be.

    Raises:
        ValueError: says whose folder it is, or why it cannot be written to.
    """
    if _get_rank():  # by the environment, as whatever started the ranks has set it
        return None
    flag = f"--trainer.default_root_dir {folder or root}"
    if exclusive and not goes_on and folder is not None and holds_run(folder):
        raise ValueError(
            f"{flag}: holds a run already: go on with --ckpt_path last, or name another folder "
            "with --trainer.default_root_dir or the loggers' version"
        )
    claimed = None
    try:
        claimed = RunFolder.new(root) if folder is None else RunFolder.at(folder)
        if exclusive:
            claimed.acquire()
    except BlockingIOError as error:
        raise ValueError(
            f"{flag}: {error.strerror}: two runs in one folder would mix; wait for it to end, or "
            "name another folder"
        ) from None
    except OSError as error:
        if claimed is not None:
            claimed.undo()
        raise ValueError(
            f"{flag}: cannot be written to ({error.strerror}); name a folder that can"
        ) from error
    return claimed


class SaveConfig(SaveConfigCallback):
    """`config.yaml` in the run's folder, by which a run is found again: whole, or as it was."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved:
            return
        folder, name = run_folder(trainer), self.config_filename
        if trainer.is_global_zero:
            if stage not in ("fit", "validate") or getattr(pl_module, "validates_fully", False):
                own = f"config-{TrainerFn(stage).value}.yaml"  # a run's config is the run's
                name = own if (folder / name).exists() else name
            folder.mkdir(parents=True, exist_ok=True)
            written = unfinished(folder / name)
            self.parser.save(self.config, written, skip_none=False, overwrite=True, multifile=False)
            publish(written, folder / name)
        self.already_saved = True


class Begun(Callback):
    """Notes that something was computed; until then a run that fails leaves nothing behind."""

    def __init__(self) -> None:
        self.begun = False

    def on_train_batch_end(self, *_: Any) -> None:
        self.begun = True

    def on_validation_batch_end(self, *_: Any) -> None:
        self.begun = True

    def on_test_batch_end(self, *_: Any) -> None:
        self.begun = True

    def on_predict_batch_end(self, *_: Any) -> None:
        self.begun = True


def _loggers(trainer: Any) -> list[Any]:
    if trainer.logger in (None, True):  # Lightning would choose by what is installed
        trainer.logger = [
            Namespace(class_path=one["class_path"], init_args=Namespace(**one["init_args"]))
            for one in default_loggers()
        ]
    return trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]


def _places(trainer: Any) -> list[Any]:
    return [logger.init_args for logger in _loggers(trainer) if _name(logger) in OWN_PLACE]


def _folder(place: Any) -> Path:
    version = place.version
    named = f"version_{version}" if isinstance(version, int) else version  # as the loggers do
    return Path(place.save_dir) / str(place.name or "") / named


def _name(logger: Any) -> str:
    return str(getattr(logger, "class_path", "")).rpartition(".")[2]
