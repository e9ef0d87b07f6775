"""Which process that is: a number is used again, a number with its start time is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def identity(pid: int) -> dict[str, Any] | None:
    """Process id, start time in clock ticks since the boot, and the boot; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    if fields[0] in ("Z", "X"):  # ended, and nobody has asked how
        return None
    return {"pid": pid, "start": int(fields[19]), "boot": boot}


def is_alive(record: dict[str, Any]) -> bool:
    """Whether the very process of an earlier `identity` still runs."""
    pid = record.get("pid")
    return isinstance(pid, int) and identity(pid) == record


def group_members(pid: int) -> list[int]:
    """Processes of the group that `pid` leads or led."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8")
            except OSError:
                continue
            fields = stat.rpartition(")")[2].split()
            if int(fields[2]) == pid and fields[0] not in ("Z", "X"):
                found.append(int(entry))
    return found
