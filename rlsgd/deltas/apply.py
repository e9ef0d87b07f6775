"""Applying deltas to a checkpoint on disk, one tensor at a time."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rlsgd.core.stored import INDEX, SINGLE, Spec, Stored, StoredTensors
from rlsgd.deltas.container import storage_order, sync_folder, write_safetensors
from rlsgd.deltas.manifest import content_hash, first_names, tensor_digest
from rlsgd.deltas.pack import Progress
from rlsgd.deltas.reader import Delta


def check_chain(deltas: Sequence[Delta]) -> None:
    """Each delta must start from what the one before it gives.

    Raises:
        ValueError: names the two that do not fit.
    """
    for first, second in itertools.pairwise(deltas):
        if first.manifest.result != second.manifest.base:
            raise ValueError(
                f"DELTA {second.path}: it does not start from what {first.path} gives "
                f"({second.manifest.base[:12]} and {first.manifest.result[:12]}). Deltas of one "
                "run that start from the same weights are alternatives: apply one of them"
            )


def check_base(base: StoredTensors, delta: Delta, progress: Progress = iter) -> None:
    """Compare every tensor of a checkpoint with what the delta was made from.

    Raises:
        ValueError: names tensors that differ.
    """
    expected = delta.manifest.base_digests()
    found = {name: tensor_digest(base.stored(name)) for name in progress(sorted(base.files))}
    if content_hash(found) == delta.manifest.base:
        return
    wrong = [
        f"{what} {first_names(names)}"
        for what, names in (
            ("it lacks", expected.keys() - found.keys()),
            ("it also has", found.keys() - expected.keys()),
            ("different:", {n for n in expected.keys() & found.keys() if expected[n] != found[n]}),
        )
        if names
    ]
    raise ValueError(
        f"BASE is not the checkpoint that {delta.path} starts from: {'; '.join(wrong)}. Give the "
        f"one with content hash {delta.manifest.base[:12]}"
    )


def apply(
    base: StoredTensors,
    deltas: Sequence[Delta],
    out: Path,
    *,
    files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    progress: Progress = iter,
) -> None:
    """Write the model folder that a checkpoint becomes by one delta after another.

    Everything is checked before anything is written; the folder appears when it is complete.

    Args:
        base: the checkpoint that the first delta starts from.
        deltas: in order; each starts from what the one before it gives.
        out: the new folder.
        files: the base's configuration and tokenizer, see `small_files`.
        overwrite: replace a model folder that is there.
        progress: wraps the names as they are walked.

    Raises:
        ValueError: `out` exists, or base and deltas do not belong together.
    """
    check_out(base, out, overwrite=overwrite)
    check_chain(deltas)
    small = _small_files(files or {}, deltas)
    check_base(base, deltas[0], progress)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        _write_tensors(base, deltas, temporary, progress)
        for name, data in small.items():
            (temporary / name).write_bytes(data)
        sync_folder(temporary)
        if overwrite and out.exists():
            replaced = out.with_name(f".{out.name}.{os.getpid()}.old")
            out.rename(replaced)
            try:
                temporary.rename(out)
            except OSError:
                replaced.rename(out)
                raise
            shutil.rmtree(replaced)
        else:
            temporary.rename(out)
        sync_folder(out.absolute().parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_out(base: StoredTensors, out: Path, *, overwrite: bool) -> None:
    """Refuse to write over anything that was not meant.

    Raises:
        ValueError: says what is there.
    """
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"OUT {out} is there already; name another, or add --overwrite")
    if not ((out / SINGLE).is_file() or (out / INDEX).is_file()):
        raise ValueError(f"OUT {out} is not a model folder, so --overwrite does not replace it")
    if any(file.resolve().is_relative_to(out.resolve()) for file in base.files.values()):
        raise ValueError(f"OUT {out} is the folder of BASE; name another")


def _write_tensors(
    base: StoredTensors, deltas: Sequence[Delta], folder: Path, progress: Progress
) -> None:
    """As many files as the base has, each tensor in its own place, added ones in the last."""
    entries = deltas[-1].manifest.tensors
    places = {path: i for i, path in enumerate(sorted(set(base.files.values())))}
    last = max(len(places) - 1, 0)
    shards: dict[int, dict[str, Spec]] = {}
    for name, entry in entries.items():
        place = places[base.files[name]] if name in base else last
        shards.setdefault(place, {})[name] = entry.spec
    count = len(shards)
    index, walked = {}, iter(progress(sorted(entries)))
    for number, place in enumerate(sorted(shards) or [0], start=1):
        specs = shards.get(place, {})
        filename = f"model-{number:05d}-of-{count:05d}.safetensors" if count > 1 else SINGLE
        write_safetensors(folder / filename, specs, _results(base, deltas, specs, walked))
        index |= dict.fromkeys(specs, filename)
    if count > 1:
        total = sum(entry.spec.nbytes for entry in entries.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def _results(
    base: StoredTensors, deltas: Sequence[Delta], specs: Mapping[str, Spec], walked: Iterator[str]
) -> Iterable[tuple[str, Stored]]:
    def before(level: int) -> Callable[[str], Stored]:
        if level == 0:
            return base.stored
        return lambda name: deltas[level - 1].tensor(name, before(level - 1))

    for name in storage_order(specs):
        next(walked, None)
        yield name, before(len(deltas))(name)


def _small_files(base: Mapping[str, bytes], deltas: Sequence[Delta]) -> dict[str, bytes]:
    """Configuration and tokenizer of the result.

    Raises:
        ValueError: the base's are not those that a delta was made with.
    """
    files = dict(base)
    for delta in deltas:
        if delta.manifest.files is None:
            continue
        stored = {name: delta.small_file(name) for name in delta.manifest.stored_files}
        files = {n: d for n, d in (files | stored).items() if n in delta.manifest.files}
        wrong = {
            name
            for name, digest in delta.manifest.files.items()
            if name not in files or hashlib.sha256(files[name]).hexdigest() != digest
        }
        if wrong:
            raise ValueError(
                f"BASE lacks {first_names(wrong)} as {delta.path} was made with, or has another "
                "version; give the whole folder of the base"
            )
    return files
