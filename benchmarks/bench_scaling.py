"""Measures how the cost of an iteration grows: with completions, their length, and the model.

    python -m benchmarks.bench_scaling --json scaling.json --plot docs/performance/scaling.png
    python -m benchmarks.bench_tables docs/performance.md scaling.json

About ten minutes on two cores. Each point is a process of its own, without diagnostics; the first
iteration is left out and the median of the others is taken. Printed is the slope of the logarithm
of seconds against the logarithm of size: 1 is linear, less means that fixed costs or unused
parallelism count. SmolLM2 is needed (once before: rlsgd data prepare smollm2).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.bench_cases import SMOLLM2, Case, model_folder
from benchmarks.bench_sides import Worker, worker_settings
from benchmarks.bench_summary import side_summary
from benchmarks.bench_tables import print_tables
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.study.results import machine, versions

GROUP = 8
BASE = Case("scaling", "qwen3_4m", 4, GROUP, 32, "embedded")
NAMES = ("completions", "completion tokens", "weights")
SIZES = (32, 64, 128, 256, 512)  # of the first two
MODELS = ("qwen3_1m", "qwen3_4m", "qwen3_11m", "qwen3_50m", SMOLLM2)


def cases(name: str, sizes: Sequence[int] = SIZES, models: Sequence[str] = MODELS) -> list[Case]:
    """The iterations of a sweep, smallest first.

    Args:
        name: one of `NAMES`.
        sizes: of the sweeps of completions and of their length.
        models: of the sweep of weights.
    """
    kinds = {
        "completions": [replace(BASE, prompts=n // GROUP) for n in sizes],
        "completion tokens": [replace(BASE, prompts=2, completion_tokens=n) for n in sizes],
        "weights": [replace(BASE, prompts=2, completion_tokens=16, model=m) for m in models],
    }
    return kinds[name]


def size_of(name: str, case: Case, folder: str) -> int:
    """What a sweep varies."""
    if name == "weights":
        weights = LazyTensors.open(folder)
        return sum(math.prod(weights.shape(tensor)) for tensor in weights.files)
    return case.rows if name == "completions" else case.completion_tokens


def point(
    case: Case, folder: Path, overrides: list[str], threads: int, repeats: int
) -> dict[str, Any]:
    """Median seconds and tokens a second of a case."""
    settings = worker_settings(
        *(case, folder, "rlsgd", {"rlsgd": overrides}), iterations=1 + repeats, threads=threads
    )
    worker = Worker("rlsgd", settings)
    try:
        summary = side_summary([worker.iterate() for _ in range(1 + repeats)][1:])
    finally:
        worker.close()
    return {
        "seconds": summary["seconds"]["median"],
        "tokens_per_second": summary["tokens_per_second"]["median"],
        "peak_bytes": summary["peak_bytes"],
        "phases": summary["phases"],
    }


def slope(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Of the least-squares line through the logarithms, and its R².

    Args:
        sizes: positive, not all alike.
        values: positive.
    """
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = fmean(x), fmean(y)
    xx = sum((a - mean_x) ** 2 for a in x)
    xy = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    yy = sum((b - mean_y) ** 2 for b in y)
    return xy / xx, xy**2 / (xx * yy) if yy else 1.0


def plot(found: dict[str, Any], path: Path) -> None:
    """Seconds against size, both logarithmic, with a line of slope 1 through the last point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, len(found["sweeps"]), figsize=(12, 3.6), squeeze=False)
    for axis, sweep in zip(axes[0], found["sweeps"], strict=True):
        sizes = [one["size"] for one in sweep["points"]]
        took = [one["seconds"] for one in sweep["points"]]
        linear = [took[-1] * size / sizes[-1] for size in sizes]
        axis.loglog(sizes, took, "o-", label=f"slope {sweep['slope']:.2f}")
        axis.loglog(sizes, linear, ":", color="grey", label="linear")
        axis.set(xlabel=sweep["name"], ylabel="seconds an iteration")
        axis.set_xticks(sizes, [short(size) for size in sizes])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def short(size: int) -> str:
    """512, 4.0M, 135M."""
    if size < 1_000_000:
        return str(size) if size < 100_000 else f"{size / 1e6:.1f}M"
    return f"{size / 1e6:.{0 if size >= 10_000_000 else 1}f}M"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sweep", choices=NAMES, action="append", help="only this; may be given again")
    add("--sizes", type=int, nargs="+", default=SIZES, help="completions, and completion tokens")
    add("--models", nargs="+", default=MODELS, help="of the sweep of weights")
    add("--repeats", type=int, default=3, help="measured iterations of each point (default: 3)")
    add("--threads", type=int, default=2, help="for torch (default: 2)")
    add("--rlsgd", action="append", default=[], metavar="KEY=VALUE", help="flag of rlsgd fit")
    add("--json", type=Path, help="write everything there, after each sweep")
    add("--plot", type=Path, help="draw it there")
    options = parser.parse_args()
    if any(size < GROUP for size in options.sizes) or len(options.sizes) < 2:
        raise SystemExit(f"--sizes: at least two, none below the group of {GROUP}")
    if min(options.repeats, options.threads) < 1:
        raise SystemExit("--repeats and --threads must be at least 1")
    return options


def main() -> None:
    options = parse()
    console = Console(width=None if sys.stdout.isatty() else 160)
    found: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": options.threads,
        "overrides": options.rlsgd,
        "sweeps": [],
    }
    with tempfile.TemporaryDirectory() as scratch, Progress(console=console) as progress:
        for name in options.sweep or NAMES:
            points = []
            wanted = cases(name, options.sizes, options.models)
            for case in progress.track(wanted, description=name):
                folder = Path(scratch) / f"{name}_{len(points)}"
                its = point(case, folder, options.rlsgd, options.threads, options.repeats)
                size = size_of(name, case, model_folder(case.model, Path(scratch)))
                points.append({"size": size, "model": case.model, **its})
            sizes, took = ([one[key] for one in points] for key in ("size", "seconds"))
            steepness, r_squared = slope(sizes, took)
            found["sweeps"].append(
                {"name": name, "points": points, "slope": steepness, "r_squared": r_squared}
            )
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print_tables(console, ["scaling"], found)
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
