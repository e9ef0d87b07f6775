"""What many iterations come to: medians, spreads, ratios, and the cost of diagnostics."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from benchmarks.bench_worker import OTHER, PHASES

Reports = list[dict[str, Any]]


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def side_summary(reports: Reports) -> dict[str, Any]:
    """Of one side's measured iterations.

    Args:
        reports: as a worker sends them, in order.

    Returns:
        `seconds` of an iteration, `processor_seconds` of all its threads, `tokens_per_second`
        generated in a whole iteration (each with median, min and max); `phases`, mean seconds,
        whose sum is the mean iteration; `peak_bytes` and `rise_bytes`, the largest resident set of
        the process, and how far that is above the one just before the model was loaded.
    """
    last = reports[-1]
    return {
        "seconds": spread([r["seconds"] for r in reports]),
        "processor_seconds": spread([r["processor_seconds"] for r in reports]),
        "tokens_per_second": spread([r["tokens"] / r["seconds"] for r in reports]),
        "phases": {
            name: fmean(r["phases"].get(name, 0.0) for r in reports) for name in (*PHASES, OTHER)
        },
        "groups_alike": fmean(r["groups_alike"] for r in reports),
        "peak_bytes": last["peak_bytes"],
        "rise_bytes": last["peak_bytes"] - last["before_bytes"],
    }


def ratios(measured: dict[str, Reports]) -> dict[str, Any]:
    """rlsgd over TRL: of wall and processor time, by pairs of neighbouring turns; of memory.

    Args:
        measured: the reports of each side.
    """
    pairs = list(zip(measured["rlsgd"], measured["trl"], strict=True))
    ours, theirs = side_summary(measured["rlsgd"]), side_summary(measured["trl"])
    return {
        **{
            key: spread([a[key] / b[key] for a, b in pairs])
            for key in ("seconds", "processor_seconds")
        },
        "peak_bytes": ours["peak_bytes"] / theirs["peak_bytes"],
        "rise_bytes": ours["rise_bytes"] / theirs["rise_bytes"],
    }


def with_diagnostics(
    reports: Reports, diagnosed: dict[str, dict[str, Any]], cadence: dict[str, int]
) -> dict[str, Any]:
    """rlsgd's iteration with the callbacks that measure updates, at their shipped cadence.

    Args:
        reports: iterations without diagnostics.
        diagnosed: an iteration with each callback, by its name, and one with a checkpoint.
        cadence: iterations from one measurement of a callback to the next.

    Returns:
        `cost_seconds` of one measurement or checkpoint; `seconds`, the median iteration with each
        measurement's share added; `peak_bytes` of the process after all of them.
    """
    cost = {
        name: report["phases"].get("checkpoint" if name == "checkpoint" else "diagnostics", 0.0)
        for name, report in diagnosed.items()
    }
    plain = side_summary(reports)["seconds"]["median"]
    shares = [cost[name] / every for name, every in cadence.items()]
    return {
        "cost_seconds": cost,
        "cadence": cadence,
        "seconds": plain + sum(shares),
        "peak_bytes": max(report["peak_bytes"] for report in diagnosed.values()),
    }
