"""Tensor-by-tensor access to model folders on disk, so that measuring needs no second model."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlsgd.core.stored import DTYPES, StoredTensors, names_in


class LazyTensors(StoredTensors):
    """Named tensors in safetensors files, read one at a time, as torch's."""

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(str(self.files[name]), framework="pt") as file:
            return file.get_tensor(name)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, from the file's header alone."""
        return getattr(torch, DTYPES[self.spec(name).dtype][0])


def write_tensors(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> LazyTensors:
    """Write each tensor to a file of its own in `folder`, holding one at a time.

    Afterwards the folder holds these tensors and no others. Each file appears whole, so ranks that
    write the same tensors to a shared folder do not disturb each other.

    Raises:
        OSError: the disk is full (`ENOSPC`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for index, (name, tensor) in enumerate(tensors):
        files[name] = folder / f"{index:06d}.safetensors"
        try:
            save_file({name: tensor.cpu().contiguous()}, files[name])
        except SafetensorError as error:
            if f"os error {errno.ENOSPC}" not in str(error):
                raise
            raise OSError(errno.ENOSPC, "No space left on device", str(files[name])) from error
    _remove_tensors(folder, keep=set(files.values()))
    return LazyTensors(files)


def starting_weights(
    parameters: Callable[[], Iterable[tuple[str, Tensor]]],
    path: str | None,
    snapshot: Path,
    *,
    resumed: bool,
) -> LazyTensors:
    """The weights before training: the checkpoint on disk when it holds them, else a snapshot.

    A snapshot is written where the model was initialised at random or where transformers renames
    tensors on loading. A resumed run trusts names and shapes, or reads the snapshot of its start.

    Args:
        parameters: walks the live parameters, whole, under their first name. It may be called
            twice, because a sharded model is gathered anew rather than held.
        path: model folder or hub name they were loaded from; none if initialised at random.
        snapshot: folder for the copy; a new run removes what an older one left there.
        resumed: the live parameters are already trained.

    Raises:
        FileNotFoundError: a resumed run needs the snapshot and it is gone.
    """
    if resumed and snapshot.is_dir():
        return LazyTensors(names_in(sorted(snapshot.glob("*.safetensors"))))
    on_disk = _open_if_there(path) if path is not None else None
    if on_disk is not None and all(
        _matches(on_disk, name, value, values=not resumed) for name, value in parameters()
    ):
        _remove_tensors(snapshot)
        return on_disk
    if resumed:
        raise FileNotFoundError(
            f"{snapshot}: the starting weights of the resumed run are not there, so its update "
            "cannot be measured. Restore the folder, or remove the update callbacks from "
            "--trainer.callbacks"
        )
    return write_tensors(parameters(), snapshot)


def _open_if_there(path: str) -> LazyTensors | None:
    try:
        return LazyTensors.open(path)
    except FileNotFoundError:
        return None


def _remove_tensors(folder: Path, *, keep: Iterable[Path] = ()) -> None:
    for path in set(folder.glob("*.safetensors")) - set(keep):
        path.unlink(missing_ok=True)  # another rank may have been here


def _matches(on_disk: LazyTensors, name: str, parameter: Tensor, *, values: bool) -> bool:
    if name not in on_disk or on_disk.shape(name) != tuple(parameter.shape):
        return False
    return not values or torch.equal(on_disk[name].to(parameter.dtype), parameter.cpu())
