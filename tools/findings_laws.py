"""The two laws against what was measured, for docs/findings.md."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rlsgd.functional.noise_scale import GradientNoise, predicted_memory
from rlsgd.functional.predicted_sparsity import expected_unchanged
from tools.findings_statistics import embedded_weights, percent
from tools.findings_tables import DOCS, estimate, study

DISPLACEMENT = "measures.update/displacement"
ALIKE = ("adamw", "rmsprop", "sign-sgd")
CARRIED = {  # study -> what it trains, and the arms of each optimizer of `rlsgd rates`
    "learning_rates": (
        "RL",
        {
            "SGD": "sgd",
            "SGD, momentum 0.9": "sgd-momentum",
            "SignSGD": "sign-sgd",
            "RMSprop": "rmsprop",
        },
    ),
    "sft_sweep": ("SFT", {"SGD": "sgd"}),
    "pretrain_sweep": (
        "pre-training",
        {"SGD": "sgd-clipped", "SGD, momentum 0.9": "sgd-momentum-clipped"},
    ),
}
SECOND_HALF = 20  # steps left out, in which the averages fill


def sparsity_errors() -> dict[str, float]:
    """Predicted minus measured unchanged share in the bf16 view, by arm of learning_rates."""
    weights = embedded_weights()
    errors = {}
    for name, arm in study("learning_rates").items():
        size = estimate(arm, DISPLACEMENT).mean / math.sqrt(weights.numel())
        predicted = float(expected_unchanged(weights, size)) / weights.numel()
        errors[name] = predicted - estimate(arm, "update.unchanged_bf16").mean
    return errors


def rms(values: Sequence[float]) -> float:
    return math.sqrt(fmean(value**2 for value in values))


def sparsity_predicted() -> str:
    """How far law 2 is off, by kind of optimizer."""
    errors = sparsity_errors()
    alike = {name: e for name, e in errors.items() if name.rpartition("-lr")[0] in ALIKE}
    worst = max(alike, key=lambda name: abs(alike[name]))
    sgd = [e for name, e in errors.items() if name.startswith("sgd-lr")]
    typical = percent(rms(list(alike.values())))
    return (
        f"- Of the {len(alike)} arms of AdamW, RMSProp and SignSGD the rms error is {typical} "
        f"points, the worst {percent(alike[worst])} ({worst}).\n"
        f"- Of SGD's {len(sgd)} arms it is {percent(rms(sgd))} points, each predicted too dense: "
        f"by {percent(-max(sgd))} to {percent(-min(sgd))}. A few of its weights move far, and the "
        "others less than their share of the displacement."
    )


def noise_rows() -> list[dict[str, Any]]:
    """For each arm: rows, pooled noise scale, and mean cosine and ratio, measured and predicted."""
    record = json.loads((DOCS / "noise_scale" / "steps.json").read_text(encoding="utf-8"))
    rows = []
    for arm, seeds in record.items():
        steps = [step for run in seeds.values() for step in run[SECOND_HALF:]]
        noise = sum(
            (GradientNoise(step["trace"], step["squared_mean"]) for step in steps), GradientNoise()
        )
        ratio = noise.signal_to_noise(steps[0]["rows"])
        assert ratio is not None
        cosine, size = predicted_memory(ratio)
        measured = [fmean(step[key] for step in steps) for key in ("cosine", "history_ratio")]
        rows.append(
            {
                "arm": arm,
                "rows": steps[0]["rows"],
                "scale": noise.scale,
                "cosine": (measured[0], cosine),
                "ratio": (measured[1], size),
                "seeds": len(seeds),
            }
        )
    return rows


def noise_table() -> str:
    """Measured beside predicted, nothing fitted."""
    header = (
        "| arm | rows a step | noise scale | cos(m, g), law | \\|\\|m\\|\\| / \\|\\|g\\|\\|, law |"
    )
    lines = [header, "| --- | --- | --- | --- | --- |"]
    for row in noise_rows():
        scale = "none found" if row["scale"] is None else f"{row['scale']:.0f}"
        cosine, ratio = (f"{row[key][0]:.2f}, {row[key][1]:.2f}" for key in ("cosine", "ratio"))
        lines.append(f"| {row['arm']} | {row['rows']:.0f} | {scale} | {cosine} | {ratio} |")
    return "\n".join(lines)


def rates_table() -> str:
    """Rates that `rlsgd rates` carried over from AdamW's best, beside those that a grid found."""
    lines = [
        "| run | optimizer | carried over | best of the grid | factor | score, nearest | best |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (kind, optimizers) in CARRIED.items():
        record = json.loads((DOCS / "rates" / f"{name}.json").read_text(encoding="utf-8"))
        for optimizer, arm in optimizers.items():
            rate = record["rates"][optimizer]["rate"]
            grid = {
                float(found.rpartition("-lr")[2]): estimate(summary, "score.final").mean
                for found, summary in study(name).items()
                if found.rpartition("-lr")[0] == arm
            }
            lower = kind == "pre-training"  # a loss
            best = (min if lower else max)(grid, key=lambda one: grid[one])
            nearest = min(grid, key=lambda one: abs(math.log(one / rate)))
            factor = max(rate / best, best / rate)
            scores = (
                f"{grid[one]:.2f}" if lower else f"{100 * grid[one]:.1f} %"
                for one in (nearest, best)
            )
            lines.append(
                f"| {kind} | {optimizer} | {rate:.2g} | {best:g} | {factor:.1f} | "
                + " | ".join(scores)
                + " |"
            )
    return "\n".join(lines)
