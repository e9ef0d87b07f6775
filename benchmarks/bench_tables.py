"""The benchmark's figures as tables: on the terminal, and in a document.

    python -m benchmarks.bench_tables docs/performance.md FILE.json ...

In the document what stands between `<!-- NAME -->` and `<!-- end -->` is replaced by the table of
that name: `ratios`, `times`, `memory`, `diagnostics`, `limit`, `machine` of benchmarks/bench.py;
`scaling` of benchmarks/bench_scaling.py; `sharing` of benchmarks/bench_sharing.py.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bench_worker import OTHER, PHASES

Rows = list[list[str]]  # the first is the heading
GB = 1e9


def seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"


def times(found: dict[str, Any]) -> Rows:
    """Seconds of an iteration, tokens a second, and where the time goes."""
    rows = [["case", "side", "iteration (min..max)", "tokens/s", *PHASES[:5], OTHER]]
    for case in found["cases"]:
        for side, its in case["sides"].items():
            took = its["seconds"]
            rows.append(
                [
                    case["case"]["name"],
                    side,
                    f"{seconds(took['median'])} ({seconds(took['min'])}..{seconds(took['max'])})",
                    f"{its['tokens_per_second']['median']:.0f}",
                    *(seconds(its["phases"][name]) for name in (*PHASES[:5], OTHER)),
                ]
            )
    return rows


def ratios(found: dict[str, Any]) -> Rows:
    """rlsgd over TRL, beside what is asked for."""
    heading = ["case", "size", "time, rlsgd / TRL (min..max)", "processor time"]
    rows = [[*heading, "peak memory", "rise", "asked"]]
    for case in found["cases"]:
        its, took = case["ratios"], case["ratios"]["seconds"]
        sizes = case["case"]
        rows.append(
            [
                sizes["name"],
                f"{sizes['prompts']} x {sizes['group']} x {sizes['completion_tokens']}",
                f"{took['median']:.2f} ({took['min']:.2f}..{took['max']:.2f})",
                f"{its['processor_seconds']['median']:.2f}",
                f"{its['peak_bytes']:.2f}",
                f"{its['rise_bytes']:.2f}",
                f"{sizes['limit']}",
            ]
        )
    return rows


def memory(found: dict[str, Any]) -> Rows:
    """Peaks of both processes."""
    rows = [["case", "rlsgd", "TRL", "rlsgd, above before the model", "TRL, the same"]]
    for case in found["cases"]:
        sides = [case["sides"][side] for side in ("rlsgd", "trl")]
        figures = [its[key] for key in ("peak_bytes", "rise_bytes") for its in sides]
        rows.append([case["case"]["name"], *(f"{figure / GB:.2f} GB" for figure in figures)])
    return rows


def diagnostics(found: dict[str, Any]) -> Rows:
    """What the callbacks on weight updates and a checkpoint add to rlsgd's iteration."""
    rows = [
        ["case", "UpdateSparsity", "EffectiveRank", "with both, an iteration", "checkpoint", "peak"]
    ]
    for case in found["cases"]:
        its = case["with_diagnostics"]
        cost, every = its["cost_seconds"], its["cadence"]
        named = [f"{seconds(cost[name])} every {every[name]}" for name in every]
        plain = case["sides"]["rlsgd"]["seconds"]["median"]
        whole = f"{seconds(its['seconds'])} (+{100 * (its['seconds'] / plain - 1):.0f}%)"
        peak = f"{its['peak_bytes'] / GB:.2f} GB"
        rows.append([case["case"]["name"], *named, whole, seconds(cost["checkpoint"]), peak])
    return rows


def limit(found: dict[str, Any]) -> Rows:
    """Operations needed, the machine's rates, and the share of the best that each side reaches."""
    products = ("square", "decode, MLP")
    heading = ["case", "operations", "prompts not shared", "best rate", *products]
    rows = [[*heading, "rlsgd", "TRL"]]
    for case in found["cases"]:
        speeds = [case["limit"]["rlsgd"]["rate"], *(case["rates"][name] for name in products)]
        rows.append(
            [
                case["case"]["name"],
                *(f"{case['operations'][k]['total'] / 1e9:.1f} G" for k in ("shared", "separate")),
                *(f"{speed / 1e9:.0f} G/s" for speed in speeds),
                *(f"{100 * case['limit'][side]['share']:.0f}%" for side in ("rlsgd", "trl")),
            ]
        )
    return rows


def machine(found: dict[str, Any]) -> Rows:
    """Where and with what the figures were measured."""
    its = found["machine"]
    named = {
        "processor": its["processor"],
        "threads": found["threads"],
        "memory": f"{its['memory_bytes'] / GB:.0f} GB",
        "date": found["date"],
        **found["versions"],
    }
    return [["", ""], *([name, str(value)] for name, value in named.items())]


def scaling(found: dict[str, Any]) -> Rows:
    """Slopes of the logarithm of cost against the logarithm of size."""
    rows = [["against", "from", "to", "an iteration, first → last", "tokens/s", "slope (R²)"]]
    for sweep in found["sweeps"]:
        first, last = sweep["points"][0], sweep["points"][-1]
        rows.append(
            [
                sweep["name"],
                f"{first['size']:,}",
                f"{last['size']:,}",
                f"{seconds(first['seconds'])} → {seconds(last['seconds'])}",
                f"{first['tokens_per_second']:.0f} → {last['tokens_per_second']:.0f}",
                f"{sweep['slope']:.2f} ({sweep['r_squared']:.3f})",
            ]
        )
    return rows


def sharing(found: dict[str, Any]) -> Rows:
    """An update with prompts shared over one with prompts apart."""
    heading = ["prompt : completion", "tokens", "prompts apart", "shared"]
    rows = [[*heading, "shared / apart (min..max)", "of operations"]]
    for its in found["sharing"]:
        measured = its["ratios"]
        spread = f"({min(measured):.2f}..{max(measured):.2f})"
        rows.append(
            [
                its["ratio"],
                f"{its['prompt_tokens']} : {its['completion_tokens']}",
                seconds(its["seconds_apart"]),
                seconds(its["seconds_shared"]),
                f"{median(measured):.2f} {spread}",
                f"{its['operations']:.2f}",
            ]
        )
    return rows


TABLES: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "ratios": ratios,
    "times": times,
    "memory": memory,
    "diagnostics": diagnostics,
    "limit": limit,
    "machine": machine,
    "scaling": scaling,
    "sharing": sharing,
}
NEEDS = {"scaling": "sweeps", "sharing": "sharing"}  # the others need cases


def markdown(rows: Rows) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def print_tables(console: Console, names: list[str], found: dict[str, Any]) -> None:
    """Tables on the terminal."""
    for name in names:
        heading, *rows = TABLES[name](found)
        table = Table(*heading, title=name)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def fill(text: str, found: dict[str, Any]) -> str:
    """A document with the tables of those figures that were found.

    Raises:
        ValueError: the document has a mark of a table that does not exist, or one without its end.
    """

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in TABLES:
            raise ValueError(f"<!-- {name} -->: there are only {', '.join(TABLES)}")
        if NEEDS.get(name, "cases") not in found:
            return match.group(0)
        return f"<!-- {name} -->\n\n{markdown(TABLES[name](found))}\n\n<!-- end -->"

    marks = re.findall(r"<!-- (\w+) -->", text)
    if marks.count("end") * 2 != len(marks):
        raise ValueError("every mark <!-- NAME --> needs an <!-- end -->")
    return re.sub(r"<!-- (\w+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> None:
    document = Path(sys.argv[1])
    text = document.read_text(encoding="utf-8")
    for path in sys.argv[2:]:
        text = fill(text, json.loads(Path(path).read_text(encoding="utf-8")))
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
