"""Scratch: tensors put on disk for a while, in the run's folder, so that they are not in memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch import Trainer
from torch import Tensor

from rlsgd.callbacks.base import run_folder
from rlsgd.core.checkpoints import LazyTensors, write_tensors


class Scratch:
    """A folder of this rank's own that exists from the first `write` to `remove`.

    A copy of the model in memory would show in what the Memory callback measures; on disk it costs
    4 bytes a weight, a write and a read.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None

    def write(
        self, trainer: Trainer, tensors: Iterable[tuple[str, Tensor]], name: str = ""
    ) -> LazyTensors:
        """Put tensors on disk in place of the last ones of the same `name`.

        Every rank must call it, see `run_folder`.
        """
        if self.folder is None:
            parent = run_folder(trainer)
            parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=parent))
        return write_tensors(tensors, self.folder / name)

    def remove(self) -> None:
        """Delete everything that was written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None
