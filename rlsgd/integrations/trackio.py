"""A Lightning logger for Trackio, which has none of its own."""

from __future__ import annotations

import importlib
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from lightning.fabric.utilities.logger import (
    _convert_json_serializable,
    _convert_params,
    _flatten_dict,
)
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment

from rlsgd.callbacks.loggers import (
    Columns,
    Counts,
    Edges,
    Rows,
    add_histogram,
    add_image,
    add_table,
)
from rlsgd.core.made_with import remembers_arguments

FOLDER = "TRACKIO_DIR"


@remembers_arguments
class TrackioLogger(Logger):
    """Logs to Trackio (https://github.com/gradio-app/trackio): local first, by default offline.

    Args:
        project: that its dashboard lists the run in.
        name: of the run; none lets Trackio choose one.
        save_dir: folder of its database. Trackio knows one folder for a process and takes it from
            TRACKIO_DIR when it is first imported; none leaves the choice to it.
        options: further arguments of `trackio.init`, such as `space_id`.

    Raises:
        ModuleNotFoundError: Trackio is not installed.
        ValueError: Trackio was imported before and writes to another folder.
    """

    def __init__(
        self,
        project: str = "rlsgd",
        name: str | None = None,
        save_dir: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._project, self._name, self._save_dir = project, name, save_dir
        self._options = {"resume": "never", **(options or {})}
        self._config: dict[str, Any] = {}
        self._run: Any = None
        try:
            trackio = _imported(save_dir)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error}: pip install 'rlsgd[trackio]'") from error
        if save_dir is not None and Path(save_dir).absolute() != trackio.TRACKIO_DIR:
            raise ValueError(
                f"save_dir {save_dir}: Trackio writes to {trackio.TRACKIO_DIR} as long as this "
                "process lives; set TRACKIO_DIR before it starts and leave save_dir out"
            )

    @property
    def name(self) -> str | None:
        return self._project

    @property
    def version(self) -> str | None:
        return self._name

    @property
    def save_dir(self) -> str | None:
        return self._save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of Trackio; it begins when something is logged."""
        import trackio

        if self._run is None:
            options = {"embed": False, **self._options, "config": self._config}
            goes_on = options["resume"] == "must"
            with redirect_stdout(io.StringIO()) if goes_on else nullcontext():
                self._run = trackio.init(self._project, self._name, **options)
            self._name = self._run.name
            self._options["resume"] = "must"  # from now on this run
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """They are stored with the run's next metrics: Trackio takes them when a run begins."""
        self._config |= _convert_json_serializable(_flatten_dict(_convert_params(params)))
        self.finalize("success")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write everything; whatever is logged afterwards goes on with the same run."""
        if self._run is not None:
            with redirect_stdout(io.StringIO()):  # "Run finished", and it may go on
                self._run.finish()
            self._run = None


def _imported(save_dir: str | None) -> ModuleType:
    """Trackio, which keeps to the folder that it finds in the environment when it is imported."""
    before = os.environ.get(FOLDER)
    if save_dir is not None:
        os.environ[FOLDER] = str(Path(save_dir).absolute())
    try:
        return importlib.import_module("trackio")
    finally:
        os.environ.pop(FOLDER, None)
        if before is not None:
            os.environ[FOLDER] = before


@add_table.register
def _(logger: TrackioLogger, tag: str, columns: Columns, rows: Rows, step: int) -> None:
    import trackio

    table = trackio.Table(columns=list(columns), data=[list(row) for row in rows])
    logger.log_metrics({tag: table}, step)


@add_image.register
def _(logger: TrackioLogger, tag: str, image: np.ndarray, step: int) -> None:
    import trackio

    logger.log_metrics({tag: trackio.Image(image)}, step)


@add_histogram.register
def _(logger: TrackioLogger, tag: str, edges: Edges, counts: Counts, step: int) -> None:
    import trackio

    histogram = trackio.Histogram(np_histogram=(np.asarray(counts), np.asarray(edges)))
    logger.log_metrics({tag: histogram}, step)
