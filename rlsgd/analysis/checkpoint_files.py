"""The checkpoints that are compared: how each is opened, and which of their tensors match."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from rlsgd.core.layer_kinds import kind_of
from rlsgd.core.stored import DTYPES, Spec, StoredTensors
from rlsgd.models.names import resolve_model

SHOWN = 20
FLOATING = ("F64", "F32", "BF16", "F16")


def open_checkpoint(name: str, role: str) -> StoredTensors:
    """Open a model folder, hub or prepared name, safetensors file or Lightning checkpoint.

    Args:
        name: what the user wrote.
        role: BASE or TUNED, for the error.

    Raises:
        ValueError: it cannot be read.
    """
    path, flag = Path(name), f"{role} {name}"
    if path.suffix == ".ckpt" and path.is_file():
        from rlsgd.analysis.lightning_files import open_lightning

        return open_lightning(path, flag, EXPORT)
    if path.is_dir() and (path / ".metadata").is_file():
        raise ValueError(f"{flag}: is a sharded checkpoint of Lightning; {EXPORT}")
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(
            f"{flag}: is no .safetensors file, and pickled weights are not read; save the model "
            "again with save_pretrained"
        )
    try:
        tensors = StoredTensors.open(path if path.is_file() else resolve_model(name, role))
        for file in sorted(set(tensors.files.values())):
            if not file.is_file():
                raise ValueError(f"{flag}: its index names {file.name}, which is not there")
        return tensors
    except FileNotFoundError as error:
        raise ValueError(f"{flag}: {error}; pickled weights are not read") from error
    except (SafetensorError, KeyError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{flag}: could not be read: {error}") from error


EXPORT = (
    "add rlsgd.callbacks.HFExport to --trainer.callbacks of the run and name the folder it writes"
)


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
    base: StoredTensors, tuned: StoredTensors, where: tuple[str, str], *, allow_missing: bool
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


@dataclass(frozen=True)
class Opened:
    """BASE and every TUNED, opened and matched; no weight is read yet.

    Args:
        base_name: what the user wrote.
        base: the checkpoint.
        tuned_names: what the user wrote.
        tuned: the checkpoints.
        matches: what each has in common with `base`.
    """

    base_name: str
    base: StoredTensors
    tuned_names: list[str]
    tuned: list[StoredTensors]
    matches: list[Match]

    @classmethod
    def open(cls, base: str, tuned: Sequence[str], *, allow_missing: bool = False) -> Opened:
        """Open and match them.

        Args:
            base: what the others were tuned from: a model folder, a hub or prepared name, a
                safetensors file.
            tuned: the others; also Lightning checkpoints.
            allow_missing: compare what both hold, where one holds more.

        Raises:
            ValueError: a checkpoint cannot be read or does not match; see `match`.
        """
        first = open_checkpoint(base, "BASE")
        others = [open_checkpoint(name, "TUNED") for name in tuned]
        matches = [
            match(first, other, (base, name), allow_missing=allow_missing)
            for other, name in zip(others, tuned, strict=True)
        ]
        return cls(base, first, list(tuned), others, matches)


def tied_heads(tensors: StoredTensors) -> list[str]:
    """Output heads that are stored beside the embedding that they are."""
    return [
        head
        for head in tensors.files
        if kind_of(head) == "head"
        and any(
            np.array_equal(tensors.stored(name).data, tensors.stored(head).data)
            for name in tensors.files
            if kind_of(name) == "embedding" and tensors.spec(name) == tensors.spec(head)
        )
    ]


def is_weight(spec: Spec, name: str, flag: str) -> bool:
    """Whether a tensor holds floating-point numbers; integers and masks are no weights.

    Raises:
        ValueError: it is quantised.
    """
    dtype = DTYPES[spec.dtype][0]
    if not dtype.startswith(("float", "bfloat")) or not spec.numel:
        return False
    if spec.dtype not in FLOATING:
        raise ValueError(
            f"{flag}: {name} is stored as {dtype}, and codes without their scales are "
            "no weights; save the model unquantised"
        )
    return True


def not_finite(flag: str, name: str) -> ValueError:
    """The error about a tensor with values that are not finite."""
    return ValueError(
        f"{flag}: {name} holds values that are not finite; a run that diverged has no update "
        "to measure, so name an earlier checkpoint"
    )


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
