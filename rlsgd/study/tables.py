"""Numbers and tables of a report as text."""

from __future__ import annotations

from collections.abc import Sequence

from rlsgd.study.scores import Score
from rlsgd.study.summary import ArmSummary, Estimate, best_rate

MISSING = "n/a"


def horizon(arm: ArmSummary) -> str:
    """How long the arm's finished runs trained, for example "60 epochs, 120 optimizer steps"."""
    lengths = {(run["epochs"], run["optimizer_steps"]) for run in arm.finished}
    if len(lengths) != 1:
        return MISSING if not lengths else "differing horizons"
    epochs, steps = lengths.pop()
    return f"{epochs} epochs" + (f", {steps} optimizer steps" if steps else "")


def seed_count(arm: ArmSummary) -> str:
    others = [run["status"] for run in arm.runs if run["status"] != "finished"]
    if not others:
        return str(len(arm.runs))
    counts = ", ".join(f"{others.count(status)} {status}" for status in dict.fromkeys(others))
    return f"{len(arm.finished)} of {len(arm.runs)} ({counts})"


def change(arm: ArmSummary, group: str, keys: tuple[str, str], scale: float, digits: int) -> str:
    before, after = (arm.estimate(group, key) for key in keys)
    start = number(before.mean if before else None, scale, digits)
    return f"{start} → {shown(after, scale, digits)}"


def rate_rows(rates: Sequence[ArmSummary], score: Score, *, best: str) -> list[list[str]]:
    """Of a swept arm: rate, seeds, final score, last reward, and `best` beside the best rate."""
    chosen = best_rate(rates, score)
    return [
        [
            f"{arm['learning_rate']:g}",
            seed_count(arm),
            shown(arm.estimate("score", "final"), score.scale, score.digits),
            shown(arm.estimate("reward", "last"), 1, 3),
            best if arm is chosen else "",
        ]
        for arm in rates
    ]


def shown(value: Estimate | None, scale: float, digits: int, *, sign: bool = False) -> str:
    if value is None:
        return MISSING
    text = number(value.mean, scale, digits, sign=sign)
    return text if value.half_width is None else f"{text} ± {scale * value.half_width:.{digits}f}"


def significant(value: Estimate | None) -> str:
    """To four digits, for numbers of any size."""
    if value is None:
        return MISSING
    spread = "" if value.half_width is None else f" ± {value.half_width:.2g}"
    return f"{value.mean:.4g}{spread}"


def number(value: float | None, scale: float, digits: int, *, sign: bool = False) -> str:
    # z: what rounds to zero has no minus
    return MISSING if value is None else f"{scale * value:{'+' if sign else ''}z.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, optional: str = "") -> str:
    """A table in Markdown; the column `optional` only if a row has something to show there."""
    empty = {MISSING, f"{MISSING} → {MISSING}"}
    kept = [
        index
        for index, title in enumerate(header)
        if title != optional or {row[index] for row in rows} - empty
    ]
    lines = [[line[i] for i in kept] for line in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
