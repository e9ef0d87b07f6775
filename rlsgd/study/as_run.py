"""Optimizers as they ran: what a run read back from its own, as a report shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlsgd.study.summary import ArmSummary
from rlsgd.study.tables import table

FILE = "provenance.json"


def optimizers_of(folder: Path) -> list[dict[str, Any]]:
    """The optimizers that a run read back, policy first; none where it left no word of them."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return (found.get("optimizers") or []) if isinstance(found, dict) else []


def optimizer_label(record: Mapping[str, Any]) -> str:
    """Class of a run's optimizer with what is not its default, as `torch.optim.SGD, momentum 0.9`.

    Args:
        record: An entry of `results.json`; an old one has only what was asked, or nothing.
    """
    found = record.get("optimizers") or []
    not_default = found[0]["changed"] if found else record.get("optimizer_args") or {}
    return ", ".join(part for part in (record["optimizer"], listed(not_default, off=True)) if part)


def arguments_shown(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Class and arguments of each optimizer of a run, as read back; empty for an old record."""
    return [
        (part["class"], "; ".join(listed(group) for group in part["arguments"]))
        for part in record.get("optimizers") or []
    ]


def listed(values: Mapping[str, Any], *, off: bool = False) -> str:
    """Arguments as text, for example `lr 0.1, momentum 0.9`; what is off only if `off`."""
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
        if off or (value is not None and value is not False)
    )


def optimizers_section(arms: Sequence[ArmSummary]) -> list[str]:
    """Of report.md: every arm's arguments; nothing where no run read them back."""
    rows = [[arm["name"], *shown] for arm in arms for shown in arguments_shown(arm.runs[0])]
    if not rows:
        return []
    return [
        "## Optimizers as they ran",
        table(["arm", "class", "arguments"], rows),
        "Read from the optimizer's groups when training began, the critic's below the policy's;"
        " what is false or none is left out, and groups that differ stand after a semicolon.",
    ]
