"""Rows as published: from the hub or a local copy, counted and checksummed before they are used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlsgd.preparation.sources import Source

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def read_source(source: Source, local: Path | None) -> Any:
    """The rows of a source (a `datasets.Dataset`) with the columns that are read, in their order.

    Args:
        source: what to read.
        local: a file or folder that holds a copy; none asks the hub.

    Raises:
        ValueError: there is nothing of that kind, or it lacks columns.
    """
    from datasets import Dataset, load_dataset

    try:
        if local is None:
            table = load_dataset(source.hub, source.config, split=source.split)
        else:
            files = list(map(str, copied_files(source, local)))
            builder = BUILDERS[Path(files[0]).suffix]
            table = load_dataset(builder, data_files=files, split="train")
    except Exception as error:
        if local is None:
            place = f"{source.hub}, split {source.split}, could not be fetched from the hub"
            advice = "; where there is no way to it, give a copy of the data set by --from"
        else:
            place, advice = f"--from {local}: the copy could not be read", ""
        raise ValueError(
            f"{source.name}: {place}{advice}: {type(error).__name__}: {error}"
        ) from error
    assert isinstance(table, Dataset)
    missing = sorted(set(source.columns) - set(table.column_names))
    if missing:
        raise ValueError(
            f"{source.name}: {local or source.hub} has no column {', '.join(map(repr, missing))}; "
            f"its columns are {', '.join(table.column_names)}"
        )
    return table.select_columns(list(source.columns))


def copied_files(source: Source, local: Path) -> list[Path]:
    """The files of a local copy that hold the source's split, sorted.

    In a folder, names decide where they tell splits or configurations apart, as on the hub.

    Raises:
        ValueError: there are none, or of several formats.
    """
    if local.is_file():
        files = [local]
    else:
        files = sorted(f for f in local.rglob("*") if f.is_file() and f.suffix in BUILDERS)
        for part in (source.config, source.split):
            named = [f for f in files if part and part in f.relative_to(local).as_posix()]
            files = named or files
    if not files or files[0].suffix not in BUILDERS:
        raise ValueError(f"no {', '.join(BUILDERS)} file is there")
    if len({file.suffix for file in files}) > 1:
        raise ValueError(f"files of several formats are there: {', '.join(f.name for f in files)}")
    return files


def check_rows(source: Source, found: int, expected: int | None) -> None:
    """Refuse another number of rows than expected.

    Args:
        source: what was read.
        found: its rows.
        expected: what `--rows` says; none goes by what is known of the source.

    Raises:
        ValueError: the two differ.
    """
    wanted = source.rows if expected is None else expected
    if wanted is not None and found != wanted:
        by = f"--rows {wanted:,}" if expected is not None else f"by {source.rows_from}, {wanted:,}"
        raise ValueError(
            f"{source.name}: {found:,} rows were read; expected {by}. It is another version, or a "
            f"part of it; `--rows {found}` accepts it as it is"
        )


def content_sha256(rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> str:
    """The checksum of what the columns hold, whatever files and format they came in.

    It is that of the rows in order, each as JSON with its columns sorted by name, one a line.
    """
    names = sorted(columns)
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps({name: row[name] for name in names}, ensure_ascii=False)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def check_sha256(source: Source, found: str, expected: str | None) -> None:
    """Refuse content with another checksum than the one that is asked for or known.

    Raises:
        ValueError: the two differ.
    """
    wanted = expected or source.sha256
    if wanted is not None and found != wanted.lower():
        raise ValueError(
            f"{source.name}: the content's SHA-256 is {found}, not {wanted.lower()}"
            f"{' (--sha256)' if expected else ''}; it is not the same data"
        )
