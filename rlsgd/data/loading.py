"""Where the rows of a data set are: a file, a folder, what was prepared or saved, or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlsgd.data.written import FORMATS, Table, dataset_rows, read_file
from rlsgd.preparation.prepared import is_prepared_name, prepared_files

_TABLES = set(FORMATS) - {".json"}  # which is also what a folder is described in


def check_path(path: str, flag: str) -> None:
    """Refuse a path that cannot be right; cheap, so it comes first.

    Raises:
        ValueError: names the flag.
    """
    if is_prepared_name(path):
        _prepared(path, flag)
        return
    place = Path(path).expanduser()
    looks_local = path.startswith((".", "/", "~")) or place.suffix in FORMATS
    if looks_local and not place.exists():
        raise ValueError(f"{flag}: there is no file or folder {path!r}")
    if place.is_file() and place.suffix not in FORMATS:
        raise ValueError(f"{flag}: {path!r} must end in one of {', '.join(FORMATS)}")
    if place.is_file() and place.stat().st_size == 0:
        raise ValueError(f"{flag}: the file {path!r} is empty")


def load_table(path: str, split: str, name: str | None, flag: str, split_flag: str) -> Table:
    """The rows of a split, with numbers as they were written.

    Args:
        path: file, folder, prepared name or name on the hub.
        split: its split, also a slice such as `train[:80%]`.
        name: configuration of a data set on the hub.
        flag: that named the path.
        split_flag: that named the split.

    Raises:
        ValueError: it cannot be read, or has no rows; names the flags.
    """
    try:
        table = _table(path, split, name, flag)
        if not table.rows:
            raise ValueError("there are no rows")
    except Exception as error:
        raise ValueError(
            f"{flag}: cannot load {path!r}, split {split!r} (--data.task.{split_flag}); does it "
            f"exist, and has it rows? {type(error).__name__}: {error}"
        ) from error
    return table


def _table(path: str, split: str, name: str | None, flag: str) -> Table:
    from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk

    place = Path(path).expanduser()
    if is_prepared_name(path):
        return _sliced({"train": [(file, "json") for file in _prepared(path, flag)]}, split)
    if place.is_file():
        return _sliced({"train": [(place, FORMATS[place.suffix])]}, split)
    if (place / "state.json").exists() or (place / "dataset_dict.json").exists():
        saved = load_from_disk(str(place))
        table = saved[split] if isinstance(saved, DatasetDict) else saved
        return dataset_rows(table)
    source = str(place) if place.is_dir() else path
    kinds = {file.suffix for file in place.rglob("*") if file.suffix in _TABLES and file.is_file()}
    if len(kinds) > 1:
        raise ValueError(
            f"the folder has {' and '.join(sorted(kinds))} files, of which one kind alone would be "
            "read; name a file, or a folder of one kind"
        )
    builder: Any = load_dataset_builder(source, name)
    kind, files = _file_format(builder), builder.config.data_files
    if kind and files:
        parts = {part: _downloaded(list(paths)) for part, paths in files.items()}
        return _sliced({part: [(p, kind) for p in paths] for part, paths in parts.items()}, split)
    table = load_dataset(source, name, split=split)
    assert isinstance(table, Dataset)
    return dataset_rows(table)


def _file_format(builder: Any) -> str | None:
    """What the files of a folder or hub data set are, if they are read here."""
    kinds = {"Json": "json", "Csv": "csv", "Parquet": "parquet"}
    return next((kinds[c.__name__] for c in type(builder).__mro__ if c.__name__ in kinds), None)


def _downloaded(paths: list[str]) -> list[Path]:
    """Local copies; local files are themselves."""
    from datasets import DownloadManager

    return [Path(path) for path in DownloadManager().download_and_extract(paths)]  # pyright: ignore


def _sliced(files: dict[str, list[tuple[Path, str]]], split: str) -> Table:
    """The rows of a split that `datasets` would give for the same words."""
    from datasets import ReadInstruction

    part = split.split("[")[0].split("+")[0]
    if part not in files:
        raise ValueError(f"there is no split {part!r}; there are {', '.join(files)}")
    tables = [read_file(path, file_format) for path, file_format in files[part]]
    rows = [row for table in tables for row in table.rows]
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    whole = Table(rows, columns, tables[0].features)
    if split == part:
        return whole
    pieces = ReadInstruction.from_spec(split).to_absolute({part: len(rows)})
    return whole._replace(rows=[row for p in pieces for row in rows[p.from_ : p.to]])


def _prepared(name: str, flag: str) -> list[Path]:
    """Files of a prepared data set; the error names the flag."""
    try:
        return prepared_files(name)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error
