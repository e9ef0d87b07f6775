"""Documents out of local files: JSON lines, Parquet and plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from rlsgd.models.names import cache_folder

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
TxtUnit = Literal["document", "paragraph", "line"]


def read_documents(path: str, *, column: str, txt_unit: TxtUnit) -> list[str]:
    """Every document of a file or folder that is not blank, in the order of the files' names.

    Args:
        path: file, folder (searched with its subfolders), or name of a text prepared in the cache.
        column: with the text, in JSON lines and Parquet.
        txt_unit: what is one document in a `.txt` file: all of it, a paragraph or a line.

    Raises:
        ValueError: there is no text, it is of several formats, or it has no such column.
    """
    from datasets import Dataset, load_dataset

    files = text_files(path)
    builders = {BUILDERS[file.suffix] for file in files}
    if len(builders) > 1:
        raise ValueError(
            f"--data.path {path}: the folder has files of several formats "
            f"({', '.join(sorted({file.suffix for file in files}))}); name one of them"
        )
    [builder] = builders
    options: dict[str, Any] = {"sample_by": txt_unit} if builder == "text" else {}
    try:
        table = load_dataset(builder, data_files=list(map(str, files)), split="train", **options)
    except Exception as error:
        raise ValueError(
            f"--data.path {path}: the text could not be read: {type(error).__name__}: {error}"
        ) from error
    assert isinstance(table, Dataset)
    column = "text" if builder == "text" else column
    if column not in table.column_names:
        raise ValueError(
            f"--data.text_column: {path} has no column {column!r}; its columns are "
            f"{', '.join(table.column_names)}"
        )
    texts = table[column]
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"--data.text_column: {column!r} of row {number} (counted from 0) of {path} is "
                f"{type(text).__name__}, not text"
            )
    return [text for text in texts if text.strip()]


def text_files(path: str) -> list[Path]:
    """The files that a path means, sorted.

    Raises:
        ValueError: there are none.
    """
    place = Path(path).expanduser()
    prepared = cache_folder() / "text" / path
    if not place.exists() and prepared.is_dir():
        place = prepared
    if place.is_file():
        if place.suffix not in BUILDERS:
            raise ValueError(f"--data.path {path} must end in one of {', '.join(BUILDERS)}")
        files = [place]
    elif place.is_dir():
        files = sorted(f for f in place.rglob("*") if f.is_file() and f.suffix in BUILDERS)
    else:
        raise ValueError(
            f"--data.path {path}: no such file or folder, and no text of that name is prepared "
            f"under {prepared.parent}. For example: rlsgd data prepare text"
        )
    files = [file for file in files if file.stat().st_size > 0]
    if not files:
        raise ValueError(f"--data.path {path}: no text in {', '.join(BUILDERS)} files there")
    return files
