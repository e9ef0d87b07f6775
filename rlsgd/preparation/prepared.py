"""Prepared data sets in the cache: where they are, and that they are what was prepared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rlsgd.models.names import cache_folder
from rlsgd.preparation.sources import SOURCES, SUITES

ROWS, MANIFEST = "rows.jsonl", "manifest.json"


def prepared_folder(name: str) -> Path:
    """Where a data set of that name is kept."""
    return cache_folder() / "data" / name


def is_prepared_name(name: str) -> bool:
    """Whether a name means a data set of `rlsgd data`, prepared or not, or one in the cache."""
    simple = "/" not in name and name not in ("", ".", "..")
    return simple and (
        name in SOURCES or name in SUITES or (prepared_folder(name) / MANIFEST).is_file()
    )


def prepared_files(name: str) -> list[Path]:
    """The files of a prepared data set, or of every benchmark of a suite, checksums compared.

    Raises:
        ValueError: one is not prepared, or has changed since.
    """
    return [_checked(member) for member in SUITES.get(name, (name,))]


def read_manifest(name: str) -> dict[str, Any] | None:
    """What `prepare` wrote about a data set; None where it is not prepared."""
    path = prepared_folder(name) / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_rows(name: str) -> list[dict[str, Any]]:
    """The problems of a prepared data set."""
    [path] = prepared_files(name)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(name: str) -> Path:
    manifest, path = read_manifest(name), prepared_folder(name) / ROWS
    if manifest is None or not path.is_file():
        raise ValueError(
            f"{name} is not prepared yet ({path} is not there). Run: rlsgd data prepare {name}"
        )
    if file_sha256(path) != manifest["rows_sha256"]:
        raise ValueError(
            f"{path} is not the file that was prepared: its checksum differs from the manifest's. "
            f"Run: rlsgd data prepare {name}"
        )
    return path
