"""The checkpoints that are compared: how each is opened, and which of their tensors match."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from rlsgd.core.checkpoints import LazyTensors
from rlsgd.core.layer_kinds import kind_of
from rlsgd.models.names import resolve_model

POLICY = "policy."
SHOWN = 20
FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class LightningTensors(LazyTensors):
    """The policy's tensors in a checkpoint that Lightning wrote, read one at a time.

    The file is mapped for each tensor and unmapped again, as `LazyTensors` does. Nothing but
    tensors and plain containers is unpickled.

    Args:
        path: the `.ckpt` file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        weights = self._load()
        super().__init__(dict.fromkeys(weights, path))
        self.shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}

    def _load(self) -> dict[str, Tensor]:
        content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        weights = content["state_dict"]
        return {n.removeprefix(POLICY): t for n, t in weights.items() if n.startswith(POLICY)}

    def __getitem__(self, name: str) -> Tensor:
        return self._load()[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]


def open_checkpoint(name: str, role: str) -> LazyTensors:
    """Open a model folder, hub or prepared name, safetensors file or Lightning checkpoint.

    Args:
        name: what the user wrote.
        role: BASE or TUNED, for the error.

    Raises:
        ValueError: it cannot be read.
    """
    path, flag = Path(name), f"{role} {name}"
    if path.suffix == ".ckpt" and path.is_file():
        return _open_lightning(path, flag)
    if path.is_dir() and (path / ".metadata").is_file():
        raise ValueError(f"{flag}: is a sharded checkpoint of Lightning; {_EXPORT}")
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(
            f"{flag}: is no .safetensors file, and pickled weights are not read; save the model "
            "again with save_pretrained"
        )
    try:
        tensors = LazyTensors.open(path if path.is_file() else resolve_model(name, role))
        for file in sorted(set(tensors.files.values())):
            if not file.is_file():
                raise ValueError(f"{flag}: its index names {file.name}, which is not there")
        return tensors
    except FileNotFoundError as error:
        raise ValueError(f"{flag}: {error}; pickled weights are not read") from error
    except (SafetensorError, KeyError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{flag}: could not be read: {error}") from error


_EXPORT = (
    "add rlsgd.callbacks.HFExport to --trainer.callbacks of the run and name the folder it writes"
)


def _open_lightning(path: Path, flag: str) -> LightningTensors:
    try:
        tensors = LightningTensors(path)
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{flag}: could not be read ({reason}); {_EXPORT}") from error
    if not tensors.files:
        raise ValueError(f"{flag}: holds no tensors of a policy ({POLICY}...); {_EXPORT}")
    return tensors


@dataclass(frozen=True)
class Match:
    """What two checkpoints have in common.

    Args:
        names: tensors that both hold.
        tied: output heads left out, because they are the embedding.
        only_base: tensors that only BASE holds.
        only_tuned: tensors that only TUNED holds.
    """

    names: list[str]
    tied: list[str]
    only_base: list[str]
    only_tuned: list[str]


def match(
    base: LazyTensors, tuned: LazyTensors, where: tuple[str, str], *, allow_missing: bool
) -> Match:
    """Match tensors by name. Order does not matter, nor whether a tied head is stored.

    Args:
        base: the checkpoint that was tuned.
        tuned: what became of it.
        where: what the user wrote as BASE and TUNED, for the errors.
        allow_missing: compare what both hold, where one holds more.

    Raises:
        ValueError: tensors are missing in one of them and may not be, shapes differ, or nothing is
            in both.
    """
    tied_base, tied_tuned = tied_heads(base), tied_heads(tuned)
    # Where one of the two unties it, the head is a tensor of its own.
    tied = {n for n in tied_base if n not in tuned or n in tied_tuned}
    tied |= {n for n in tied_tuned if n not in base or n in tied_base}
    first, second = base.files.keys() - tied, tuned.files.keys() - tied
    found = Match(
        sorted(first & second), sorted(tied), sorted(first - second), sorted(second - first)
    )
    flag = f"TUNED {where[1]}"
    if not found.names:
        raise ValueError(
            f"{flag}: has no tensor in common with BASE {where[0]}; it has {_list(second)}, and "
            f"BASE has {_list(first)}"
        )
    if (found.only_base or found.only_tuned) and not allow_missing:
        lacks = f" lacks {_list(found.only_base)} of BASE {where[0]};" if found.only_base else ""
        extra = f" has {_list(found.only_tuned)}, which BASE lacks;" if found.only_tuned else ""
        raise ValueError(
            f"{flag}:{lacks}{extra} name checkpoints of one architecture, or add --allow-missing "
            "to compare the tensors that both hold"
        )
    differ = [
        f"{name} {tuned.shape(name)} instead of {base.shape(name)}"
        for name in found.names
        if tuned.shape(name) != base.shape(name)
    ]
    if differ:
        raise ValueError(
            f"{flag}: shapes differ from BASE {where[0]}: {_list(differ)}; an update has the shape "
            "of its weights, so name the checkpoint that was tuned, with the same vocabulary"
        )
    return found


def tied_heads(tensors: LazyTensors) -> list[str]:
    """Output heads that are stored beside the embedding that they are."""
    return [
        head
        for head in tensors.files
        if kind_of(head) == "head"
        and any(
            torch.equal(tensors[name], tensors[head])
            for name in tensors.files
            if kind_of(name) == "embedding" and tensors.shape(name) == tensors.shape(head)
        )
    ]


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
