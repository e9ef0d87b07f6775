"""Collect the steps of configs/studies/noise_scale.yaml, and compare each cell with the law.

    rlsgd study configs/studies/noise_scale.yaml
    python -m tools.noise_cells runs/noise_scale    # writes docs/noise_scale/steps.json

A cell is an arm (RL or SFT, rows of a step, rate) in one window of 20 steps, all seeds together.
Its noise scale is that of the sums over its steps; its predicted cosine the mean of the law's for
an average that is as old as it was at each step; its measured cosine the mean over its steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rlsgd.functional.noise_scale import GradientNoise, predicted_memory

STEPS = Path("docs/noise_scale/steps.json")
KEYS = ("rows", "trace", "squared_mean", "cosine", "history_ratio")
WINDOW = 20
TOLERANCE = 0.05
# Arms of which runs were looked at before this study: they are no test of the law.
SEEN_BEFORE = ("rl-256-lr1e-06", "rl-32-lr1e-06")


@dataclass(frozen=True)
class Cell:
    """One window of an arm: rows of a step, noise scale, and both quantities of the average.

    Args:
        scale: B in rows; None where no signal was found in the noise.
        cosine: of average and gradient, measured, and as the law has it.
        ratio: ||m|| / ||g||, the same.
        squared_mean: ||mu||^2, the signal.
    """

    arm: str
    first_step: int
    rows: float
    scale: float | None
    cosine: tuple[float, float]
    ratio: tuple[float, float]
    squared_mean: float

    @property
    def holds(self) -> bool:
        """Whether the law is within `TOLERANCE` of the measured cosine."""
        return abs(self.cosine[0] - self.cosine[1]) <= TOLERANCE


def collect(runs: Path) -> dict[str, dict[str, list[list[float | None]]]]:
    """The `KEYS` of every step, by arm and seed, in five digits.

    Raises:
        ValueError: a run lacks steps.
    """
    found: dict[str, dict[str, list[list[float | None]]]] = {}
    for file in sorted(runs.glob("*/seed*/**/noise_scale.jsonl")):
        arm, seed = file.relative_to(runs).parts[:2]
        totals = [json.loads(line)["total"] for line in file.read_text("utf-8").splitlines()]
        if len(totals) % WINDOW:
            raise ValueError(f"{file}: {len(totals)} steps, not whole windows of {WINDOW}")
        rows = [[total.get(key) for key in KEYS] for total in totals]
        found.setdefault(arm, {})[seed.removeprefix("seed").strip("-_")] = [
            [None if value is None else float(f"{value:.5g}") for value in row] for row in rows
        ]
    return found


def cells(steps: dict[str, dict[str, list[list[float | None]]]]) -> Iterator[Cell]:
    """Every window of every arm."""
    for arm, seeds in steps.items():
        count = min(map(len, seeds.values()))
        for first in range(0, count, WINDOW):
            window = range(first, first + WINDOW)
            records = [
                dict(zip(KEYS, run[i], strict=True)) for run in seeds.values() for i in window
            ]
            noise = sum(
                (GradientNoise(r["trace"], r["squared_mean"]) for r in records), GradientNoise()
            )
            rows = records[0]["rows"]
            ratio = noise.signal_to_noise(rows)
            assert ratio is not None
            # Before the first step there is no average.
            laws = [predicted_memory(ratio, steps=i) for i in window if i]
            measured = [
                fmean(r[key] for r in records if r[key] is not None)
                for key in ("cosine", "history_ratio")
            ]
            yield Cell(
                arm,
                first + 1,
                rows,
                noise.scale,
                (measured[0], fmean(law[0] for law in laws)),
                (measured[1], fmean(law[1] for law in laws)),
                noise.squared_mean / len(records),
            )


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of the study's runs")
    found = collect(parser.parse_args().runs)
    STEPS.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")
    for cell in cells(found):
        print(
            f"{cell.arm:16} {cell.first_step:3} B {cell.scale or 0:8.1f}", *cell.cosine, cell.holds
        )


if __name__ == "__main__":
    main()
