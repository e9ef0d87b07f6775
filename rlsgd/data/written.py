"""Rows of a file with every number as it was written: no reader may guess what a value means.

`datasets` reads JSON lines and CSV with readers that infer types: "2024-02-29" becomes a timestamp
and 42 beside 0.5 becomes 42.0. An answer is compared by its text, so it has to survive.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # slow to import, and training on sums needs none of it
    import pyarrow as pa
    from datasets import Dataset, Features

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


class WrittenNumber(str):
    """A number as its text in the file."""

    def number(self) -> int | float | str:
        """Its value; a whole number that Python does not convert (4,300 digits) stays text."""
        try:
            return int(self)
        except ValueError:
            return str(self) if self.lstrip("-").isdigit() else float(self)


class Table(NamedTuple):
    """Rows in order, and the names of all their columns."""

    rows: list[dict[str, Any]]
    columns: list[str]
    features: Features | None = None  # where the file has them


def read_file(path: Path, file_format: str) -> Table:
    """All rows of a file.

    Args:
        path: of the file.
        file_format: `json` (also JSON lines), `csv` or `parquet`.
    """
    if file_format == "parquet":
        import pyarrow.parquet

        return arrow_rows(pyarrow.parquet.read_table(path))
    rows = list(_csv_rows(path) if file_format == "csv" else _json_rows(path))
    return Table(rows, list(dict.fromkeys(column for row in rows for column in row)))


def dataset_rows(table: Dataset) -> Table:
    """All rows of a data set that is loaded already, with the types of its columns."""
    return arrow_rows(table.with_format("arrow")[:], table.features)


def arrow_rows(table: pa.Table, features: Features | None = None) -> Table:
    """All rows of an Arrow table; float32 0.1 is written 0.1, not 0.10000000149011612."""
    from datasets import Features

    columns = {}
    _refuse_twice(table.column_names)
    for name, column in zip(table.column_names, table.columns, strict=True):
        short = {"float", "halffloat"} & set(str(column.type).replace(">", " ").split())
        columns[name] = [_scalar(v) for v in column] if short else column.to_pylist()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Table(rows, list(columns), features or Features.from_arrow_schema(table.schema))


def at_path(row: dict[str, Any], path: str) -> Any:
    """The value of a column, or of a field within: `reward_model.ground_truth`; None if absent."""
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def has_path(table: Table, path: str) -> bool:
    """Whether a column, or a field within one, is there in any row."""
    if path in table.columns:
        return True
    if "." not in path or path.split(".")[0] not in table.columns:
        return False
    parent, _, last = path.rpartition(".")
    found = (at_path(row, parent) for row in table.rows)
    return any(isinstance(value, dict) and last in value for value in found)


def is_class_label(table: Table, path: str) -> bool:
    """Whether a column holds numbers that stand for names which are kept elsewhere."""
    from datasets import ClassLabel

    feature: Any = table.features
    for name in [path] if path in table.columns else path.split("."):
        feature = feature.get(name) if isinstance(feature, dict) else None
    return isinstance(getattr(feature, "feature", feature), ClassLabel)


def plain(value: Any) -> Any:
    """The value with numbers for numbers, as rewards expect their columns."""
    if isinstance(value, WrittenNumber):
        return value.number()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    first = text.lstrip()[:1]
    if first == "[":
        rows = _json(text)
    else:
        lines = ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
        rows = (_json(line, f"line {number}: ") for number, line in lines)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} (counted from 0) is a {type(row).__name__}, no object")
        yield row


def _json(text: str, where: str = "") -> Any:
    try:
        return json.loads(
            text,
            parse_int=WrittenNumber,
            parse_float=WrittenNumber,
            parse_constant=float,
            object_pairs_hook=_object,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}not JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def _refuse_twice(names: list[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is there twice, and which one is meant cannot be known")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice([name for name, _ in pairs])
    return dict(pairs)


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Cells are text, whatever they look like; an empty one is None, NaN is not a number."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _refuse_twice([name for name in reader.fieldnames or () if name])
        for number, row in enumerate(reader):
            if None in row:
                raise ValueError(f"row {number} (counted from 0) has more cells than the header")
            special = {"": None, "NaN": float("nan"), "nan": float("nan")}
            yield {name: special.get(cell, cell) for name, cell in row.items()}


def _scalar(value: pa.Scalar) -> Any:
    """A value of Arrow's; the shortest text that is the same number in its own precision."""
    import pyarrow as pa

    if not value.is_valid:
        return None
    if isinstance(value, (pa.FloatScalar, pa.HalfFloatScalar)):
        kind = np.float32 if isinstance(value, pa.FloatScalar) else np.float16
        number = kind(value.as_py())
        return WrittenNumber(number) if np.isfinite(number) else float(number)
    if isinstance(value, pa.ListScalar):  # and its subclasses
        return [_scalar(inner) for inner in value]
    if isinstance(value, pa.StructScalar):
        return {name: _scalar(inner) for name, inner in value.items()}
    return value.as_py()
