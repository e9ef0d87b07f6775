"""Checkpoint files: written whole or not at all, and read without running anything in them."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rlsgd.models.shard_index import META, check_shards

DAMAGED = (OSError, EOFError, RuntimeError, KeyError, ValueError, zipfile.BadZipFile)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, to the disk, and renames: a crash leaves the file that was there.

    Lightning writes to the system's temporary folder and moves, which is a copy if that is another
    disk, and a copy can be cut short.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        if "://" in str(path):  # not of this machine
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = unfinished(path)
        failures: list[OSError] = []
        try:
            with written.open("wb") as file:
                writer: Any = _Writer(file, failures)
                torch.save(checkpoint, writer)
            publish(written, path)
        except BaseException as error:
            written.unlink(missing_ok=True)
            cause = failures[0] if failures else error
            if isinstance(cause, OSError) and cause.filename is None:
                cause.filename = str(written)
            raise cause from None


class _Writer:
    """A file that notes why a write failed; torch says only that one did."""

    def __init__(self, file: Any, failures: list[OSError]) -> None:
        self.file = file
        self.failures = failures

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.failures.append(error)
            raise

    def flush(self) -> None:
        self.file.flush()


def unfinished(path: Path) -> Path:
    """Where a checkpoint is written before it has its name."""
    return path.with_name(f".{path.name}.writing")


def publish(written: Path, path: Path) -> None:
    """Give a file or folder its name once all of it is on the disk, in place of what has it now."""
    for file in [written, *written.rglob("*")] if written.is_dir() else [written]:
        sync(file)
    if path.is_dir():  # cannot be replaced in one step
        shutil.rmtree(path)
    os.replace(written, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a run, that of the latest iteration first; those between iterations if any.

    Their order is in their names: clocks are set back, and copies have new times.
    """
    found = [path for path in folder.glob("*.ckpt") if not path.is_symlink()]
    own = [path for path in found if path.name.startswith("iteration=")]
    return sorted(own or found, key=place_of, reverse=True)


def place_of(path: Path) -> tuple[int, int, str]:
    """Epoch (or iteration) and step that a checkpoint's name gives, -1 where it gives none."""
    numbers = dict(re.findall(r"(iteration|epoch|step)=(\d+)", path.name))
    epoch = numbers.get("iteration", numbers.get("epoch", -1))
    return int(epoch), int(numbers.get("step", -1)), path.name


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, once every byte of it is known to be as it was written.

    Tensors stay on disk until they are used; those of a distributed checkpoint are not included.

    Raises:
        ValueError: it is not there, damaged, or holds more than tensors and plain data. Names the
            checkpoint before it.
    """
    flag = f"--ckpt_path {path}"
    if not path.exists():
        raise ValueError(f"{flag}: there is no such checkpoint{_instead_of(path)}")
    try:
        if path.is_dir():
            check_shards(path)
        file = path / META if path.is_dir() else path
        with zipfile.ZipFile(file) as archive:
            if broken := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {broken}")
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{flag} holds more than tensors and plain data, so that loading it could run code: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except DAMAGED as error:
        raise ValueError(
            f"{flag} is damaged ({type(error).__name__}: {error}){_instead_of(path)}"
        ) from error


def _instead_of(path: Path) -> str:
    others = [str(other) for other in checkpoints_in(path.parent) if other != path]
    return f"; use {others[0]}" if others else ""
