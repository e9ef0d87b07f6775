"""What a run leaves beside its configuration: the command, the versions and the machine."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlsgd.study.as_run import FILE
from rlsgd.study.results import machine, versions


def write_provenance(folder: Path, command: str) -> None:
    """Write `provenance.json`, for `rlsgd report` and for whoever repeats the run.

    Args:
        folder: The run's.
        command: What was run.
    """
    record = {
        "command": command,
        "versions": versions(),
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def add_to_provenance(folder: Path, **entries: Any) -> None:
    """Add what became known when the run was set up."""
    path = folder / FILE
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | entries, indent=2) + "\n", encoding="utf-8")
