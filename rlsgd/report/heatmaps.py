"""Update sparsity by layer and kind of weight, as coloured tables: one for each arm."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlsgd.core.layer_kinds import layer_kind_table
from rlsgd.report.sources import ReportedRun

MEASURE = "unchanged_bf16"
_SHORT = {"attention_": "", "embedding": "emb."}


@dataclass(frozen=True)
class Cell:
    """One coloured cell: its text and its two colours, as CSS has them."""

    text: str
    background: str
    colour: str


@dataclass(frozen=True)
class Heatmap:
    """Layers down, kinds across.

    Args:
        arm: Whose weights these are.
        seeds: Runs that the shares are a mean of.
        epoch: Epochs trained when they were measured.
        kinds: Of the columns.
        rows: Label and cells; None where there is no such weight.
    """

    arm: str
    seeds: int
    epoch: int
    kinds: list[str]
    rows: list[tuple[str, list[Cell | None]]]


def sparsity_heatmaps(runs: Sequence[ReportedRun], arms: Sequence[str]) -> list[Heatmap]:
    """The last measurement of each arm's finished runs, mean over seeds; none where none has one.

    Raises:
        ValueError: An update_sparsity.jsonl holds something else.
    """
    maps = []
    for arm in arms:
        found = [
            measured
            for run in runs
            if run.record["name"] == arm and run.record["status"] == "finished"
            if (measured := _last(run)) is not None
        ]
        # seeds that were measured at different horizons have no common mean
        epochs = {epoch for epoch, _ in found}
        if len(epochs) != 1 or len({frozenset(shares) for _, shares in found}) != 1:
            continue
        means = {name: fmean(shares[name] for _, shares in found) for name in found[0][1]}
        labels, kinds, table = layer_kind_table(means)
        rows = [
            (label, [None if math.isnan(value) else cell(value) for value in row])
            for label, row in zip(labels, table, strict=True)
        ]
        maps.append(Heatmap(arm, len(found), epochs.pop(), [_short(kind) for kind in kinds], rows))
    return maps


def cell(share: float) -> Cell:
    """A share in percent on a scale from white (0) to dark blue (1)."""
    red, green, blue = (round(255 + share * (dark - 255)) for dark in (8, 48, 107))
    return Cell(
        f"{100 * share:.1f}" if share < 0.9995 or share == 1 else ">99.9",
        f"rgb({red},{green},{blue})",
        "#fff" if share > 0.5 else "#111",
    )


def _last(run: ReportedRun) -> tuple[int, dict[str, float]] | None:
    path = run.folder / "update_sparsity.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if not lines:
        return None
    try:
        record = json.loads(lines[-1])
        shares = {name: float(found[MEASURE]) for name, found in record["tensors"].items()}
        return int(record["epoch"]) + 1, shares
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"RUN: the last line of {path} is no measurement: {error!r}") from error


def _short(kind: str) -> str:
    for long, short in _SHORT.items():
        kind = kind.replace(long, short)
    return kind
