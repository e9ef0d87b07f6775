"""A paper's numbers beside a study's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from rich.table import Table

from rlsgd.study.arms import Study
from rlsgd.study.scores import SCORES
from rlsgd.study.summary import ArmSummary, Estimate, mean_interval, representatives, summarise
from rlsgd.study.tables import MISSING, table

MEAN = "mean"


@dataclass(kw_only=True)
class Column:
    """What a column of a published table measures.

    Args:
        title: As the table is shown.
        metric: What a study measured for it: a metric of an evaluation, such as
            `math500/accuracy`; `update/...` or `value_update/...` at the end of training; or `mean`
            of the row's other columns.
        scale: What a study's value is multiplied by to be in the table's unit.
    """

    title: str
    metric: str
    scale: float = 100.0


@dataclass(kw_only=True)
class PublishedRow:
    """One line of a published table.

    Args:
        arm: The arm of a study that it is compared with.
        values: In the order of the columns; null where the paper has none.
        evaluation: The study's evaluation that measures it; null for metrics of training.
    """

    arm: str
    values: list[float | None]
    evaluation: str | None = None


@dataclass(kw_only=True)
class PublishedTable:
    """Numbers out of a paper.

    Args:
        title: What the table shows, with its unit.
        source: Paper, version and table.
        columns: What is in its columns.
        rows: Its lines.
    """

    title: str
    source: str
    columns: list[Column]
    rows: list[PublishedRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(
                    f"rows of {self.title!r}: {row.arm} has {len(row.values)} values for "
                    f"{len(self.columns)} columns"
                )


def load_published(path: Path) -> dict[str, PublishedTable]:
    """The tables of a file, by their names.

    Raises:
        ValueError: The file is missing, or a table is not as `PublishedTable` says.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--tables", type=dict[str, PublishedTable])
    try:
        tables = yaml.safe_load(path.read_text(encoding="utf-8"))
        parsed = parser.parse_object({"tables": tables})
        found: Any = parser.instantiate_classes(parsed)
        return found.tables
    except (OSError, yaml.YAMLError, ArgumentError, ValueError) as error:
        raise ValueError(f"published {path}: {error}") from error


def published_tables(study: Study) -> list[PublishedTable]:
    """The tables that a study names, with the rows of its own arms alone.

    Raises:
        ValueError: One is not in the file, or has no row of any arm.
    """
    if study.published is None:
        return []
    tables = load_published(Path(study.published))
    arms = {arm.name for arm in study.arms}
    evaluations = {None, *(evaluation.name for evaluation in study.evaluations)}
    found = []
    for name in study.published_tables:
        if name not in tables:
            raise ValueError(
                f"published_tables: {name!r} is not in {study.published}, which has "
                f"{', '.join(tables)}"
            )
        rows = [row for row in tables[name].rows if row.arm in arms]
        strange = sorted({str(row.evaluation) for row in rows if row.evaluation not in evaluations})
        if not rows or strange:
            lacking = f"evaluations {', '.join(strange)}" if strange else "any of its arms"
            raise ValueError(f"published_tables: the study does not have {lacking} of {name!r}")
        own = PublishedTable(**{**vars(tables[name]), "rows": rows})
        found.append(own)
    return found


def beside_published(
    tables: Sequence[PublishedTable], results: dict[str, Any]
) -> list[dict[str, Any]]:
    """For `results.json`: every table with the study's estimates in the table's unit.

    A swept arm is represented by its best rate, as in the comparison of arms.
    """
    score = SCORES[results["study"]["score"]]
    arms = {
        arm["sweep"] or arm["name"]: arm
        for arm in representatives(summarise(results["arms"]), score)
    }
    return [
        {
            "title": one.title,
            "source": one.source,
            "columns": [column.title for column in one.columns],
            "rows": [
                {
                    "arm": row.arm,
                    "learning_rate": arms[row.arm]["learning_rate"] if row.arm in arms else None,
                    "evaluation": row.evaluation,
                    "published": row.values,
                    "own": _own(one.columns, row, arms.get(row.arm)),
                }
                for row in one.rows
            ],
        }
        for one in tables
    ]


def published_section(beside: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown of every table: the study's value, then the paper's."""
    parts = []
    for one in beside:
        header = ["arm", "learning rate", "evaluation", *one["columns"]]
        parts += [
            f"## Beside {one['source']}",
            one["title"],
            table(header, _shown_rows(one)),
        ]
    note = (
        "Each cell: this study's mean over seeds ± half a 95% interval, and [the paper's number]."
    )
    return [*parts, note] if parts else []


def published_terminal(one: dict[str, Any]) -> Table:
    """The same for the terminal."""
    shown = Table(title=f"{one['source']}: {one['title']}", caption="this study [the paper]")
    for column in ("arm", "rate", "evaluation", *one["columns"]):
        shown.add_column(column)
    for row in _shown_rows(one):
        shown.add_row(*(cell.replace("[", "\\[") for cell in row))
    return shown


def _own(
    columns: Sequence[Column], row: PublishedRow, arm: ArmSummary | None
) -> list[dict[str, Any] | None]:
    by_seed = [_run_values(columns, row, run) for run in arm.finished] if arm else []
    cells: list[dict[str, Any] | None] = []
    for index in range(len(columns)):
        values = [run[index] for run in by_seed]
        known = [value for value in values if value is not None]
        if not values or len(known) < len(values):
            cells.append(None)
            continue
        found: Estimate = mean_interval(known)
        cells.append({"mean": found.mean, "half_width": found.half_width})
    return cells


def _run_values(
    columns: Sequence[Column], row: PublishedRow, run: dict[str, Any]
) -> list[float | None]:
    """One run's values in the table's unit, column by column."""
    values: list[float | None] = []
    for column in columns:
        value = _measured(column.metric, row, run)
        values.append(None if value is None else column.scale * value)
    others = [v for v, column in zip(values, columns, strict=True) if column.metric != MEAN]
    known = [value for value in others if value is not None]
    mean = sum(known) / len(known) if known and len(known) == len(others) else None
    return [
        mean if column.metric == MEAN else value
        for value, column in zip(values, columns, strict=True)
    ]


def _measured(metric: str, row: PublishedRow, run: dict[str, Any]) -> float | None:
    if row.evaluation is not None:
        return ((run.get("evaluations") or {}).get(row.evaluation) or {}).get(metric)
    group, _, key = metric.partition("/")
    return run[group].get(key) if group in ("update", "value_update") else None


def _shown_rows(one: dict[str, Any]) -> list[list[str]]:
    rows = []
    for row in one["rows"]:
        rate = MISSING if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        cells = zip(row["own"], row["published"], strict=True)
        rows.append(
            [row["arm"], rate, row["evaluation"] or "training", *(_cell(*c) for c in cells)]
        )
    return rows


def _cell(own: dict[str, Any] | None, published: float | None) -> str:
    text = MISSING
    if own is not None:
        width = own["half_width"]
        text = f"{own['mean']:.2f}" + ("" if width is None else f" ± {width:.2f}")
    return f"{text} [{MISSING if published is None else f'{published:g}'}]"
