"""The tables of docs/findings.md: which arms stand in them, and which of their numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlsgd.study.summary import (
    ArmSummary,
    Estimate,
    mean_interval,
    paired_difference,
    summarise,
)

DOCS = Path("docs")
MINUS = "\N{MINUS SIGN}"


@cache
def study(name: str) -> dict[str, ArmSummary]:
    """The arms of `docs/NAME/results.json` by name; an older file's `accuracy` is its score."""
    record = json.loads((DOCS / name / "results.json").read_text(encoding="utf-8"))
    for run in record["arms"]:
        run.setdefault("score", run.get("accuracy"))
    return {arm["name"]: arm for arm in summarise(record["arms"])}


def values(arm: ArmSummary, column: str) -> list[Any]:
    """One number of every finished run: `score.final`, `update.unchanged_bf16`, `matched.epoch`."""
    group, _, key = column.partition(".")
    return [run[group][key] for run in arm.finished]


def estimate(arm: ArmSummary, column: str) -> Estimate:
    """Its mean over seeds and the 95% t-interval."""
    return mean_interval(values(arm, column))


def shown(found: Estimate, factor: float, digits: int, *, sign: bool = False, spread: bool = True):
    """`94.8 ± 0.2`, with a typographic minus."""
    text = f"{factor * found.mean:{'+' if sign else ''}z.{digits}f}"
    if spread and found.half_width is not None:
        text += f" ± {factor * found.half_width:.{digits}f}"
    return text.replace("-", MINUS)


@dataclass(frozen=True)
class Column:
    """A number of each arm: where it is in a record, and how it is shown."""

    title: str
    column: str
    factor: float = 1.0
    digits: int = 1
    spread: bool = True
    unit: str = ""
    minus: str | None = None  # the arm whose value with the same seed is subtracted

    def cell(self, arms: dict[str, ArmSummary], arm: str) -> str:
        if self.minus == arm or any(v is None for v in values(arms[arm], self.column)):
            return ""
        if self.minus is None:
            found = estimate(arms[arm], self.column)
            return shown(found, self.factor, self.digits, spread=self.spread) + self.unit
        group, _, key = self.column.partition(".")
        found = paired_difference(arms[arm], arms[self.minus], group, key)
        assert found is not None
        return shown(found, self.factor, self.digits, sign=True)


ACCURACY = Column("accuracy", "score.final", 100, 1, unit=" %")
UNCHANGED = Column("unchanged", "update.unchanged_bf16", 100, 1, unit=" %")
RANK = Column("rank", "update.effective_rank_percent")
DISPLACEMENT = Column("displacement", "measures.update/displacement", digits=3, spread=False)


def matched(title: str, column: str, factor: float = 100, unit: str = " %") -> Column:
    return Column(title, f"matched.{column}", factor, 1, unit=unit)


@dataclass(frozen=True)
class TableSpec:
    study: str
    first: str
    columns: tuple[Column, ...]
    rows: dict[str, str]  # arm -> what its row is called


TABLES = {
    "learning-rates": TableSpec(
        "learning_rates",
        "optimizer, at its best rate",
        (ACCURACY, UNCHANGED, RANK, DISPLACEMENT),
        {
            "adamw-lr3e-05": "AdamW 3e-5",
            "sgd-lr0.003": "SGD 3e-3",
            "sgd-momentum-lr0.001": "SGD 1e-3, momentum 0.9",
            "rmsprop-lr1e-05": "RMSProp 1e-5",
            "sign-sgd-lr3e-05": "SignSGD 3e-5",
        },
    ),
    "momentum": TableSpec(
        "momentum",
        "optimizer",
        (
            ACCURACY,
            Column("minus SGD, paired", "score.final", 100, 1, minus="sgd"),
            UNCHANGED,
            RANK,
            DISPLACEMENT,
        ),
        {
            "sgd": "SGD 3e-3",
            "sgd-momentum": "SGD 1e-3, momentum 0.9",
            "rmsprop": "RMSProp 1e-5",
            "adamw": "AdamW 3e-5",
            "sign-sgd": "SignSGD 3e-5",
        },
    ),
    "displacement": TableSpec(
        "displacement",
        "arm",
        (
            matched("epochs to get there", "epoch", 1, ""),
            matched("accuracy there", "val/accuracy"),
            matched("unchanged there", "update/unchanged_bf16"),
            matched(r"\|Δ\| ≤ 1e-5 there", "update/within_1e-5"),
            matched("rank there", "update/effective_rank_percent", 1, ""),
        ),
        {
            "adamw-lr3e-06": "AdamW 3e-6",
            "adamw-lr1e-05": "AdamW 1e-5",
            "adamw-lr3e-05": "AdamW 3e-5",
            "sgd-lr0.001": "SGD 1e-3",
            "sgd-lr0.003": "SGD 3e-3",
            "sgd-lr0.01": "SGD 1e-2",
        },
    ),
    "precision": TableSpec(
        "precision",
        "arm",
        (ACCURACY, UNCHANGED, RANK),
        {
            "adamw-fp32": "AdamW 3e-5, fp32",
            "adamw-master": "AdamW 3e-5, master",
            "adamw-bf16-nearest": "AdamW 3e-5, bf16 nearest",
            "adamw-bf16-stochastic": "AdamW 3e-5, bf16 stochastic",
            "sgd-fp32": "SGD 3e-3, fp32",
            "sgd-master": "SGD 3e-3, master",
            "sgd-bf16-nearest": "SGD 3e-3, bf16 nearest",
            "sgd-bf16-stochastic": "SGD 3e-3, bf16 stochastic",
        },
    ),
    "weight-decay": TableSpec(
        "weight_decay",
        "arm",
        (
            ACCURACY,
            UNCHANGED,
            Column(r"\|Δ\| ≤ 1e-5 in fp32", "update.within_1e-5", 100, 1, unit=" %"),
            RANK,
        ),
        {
            "adamw": "AdamW 3e-5, decay 0",
            "adamw-decay0.01": "AdamW 3e-5, decay 0.01",
            "adamw-decay0.1": "AdamW 3e-5, decay 0.1",
            "sgd": "SGD 3e-3, decay 0",
            "sgd-decay0.001": "SGD 3e-3, decay 0.001",
            "sgd-decay0.01": "SGD 3e-3, decay 0.01",
        },
    ),
    "subnetwork": TableSpec(
        "subnetwork",
        "arm",
        (
            ACCURACY,
            Column("minus SGD with all weights, paired", "score.final", 100, 1, minus="sgd"),
            UNCHANGED,
        ),
        {
            "sgd": "SGD, all weights",
            "sgd-changed": "SGD, those that SGD changed",
            "sgd-random": "SGD, as many at random",
            "adamw": "AdamW, all weights",
            "adamw-changed": "AdamW, those that AdamW changed",
            "adamw-random": "AdamW, as many at random",
            "adamw-in-sgds": "AdamW, those that SGD changed",
        },
    ),
    "rl-against-sft": TableSpec(
        "rl_against_sft",
        "at the last step",
        (
            ACCURACY,
            UNCHANGED,
            RANK,
            DISPLACEMENT,
            Column("std over mean of sqrt(v)", "measures.dynamics/sqrt_v_cv", digits=2),
            Column(r"\|\|m\|\| / \|\|g\|\|", "measures.dynamics/shadow_history_ratio", digits=2),
            Column("cos(m, g)", "measures.dynamics/shadow_momentum_gradient_cosine", digits=2),
        ),
        {
            "rl-adamw": "RL, AdamW 3e-5, 256 rows",
            "sft-adamw-rls-rate": "SFT, AdamW 3e-5, 32 rows",
            "sft-adamw": "SFT, AdamW 1e-5, 32 rows",
            "rl-sgd": "RL, SGD 3e-3, 256 rows",
            "sft-sgd": "SFT, SGD 3e-3, 32 rows",
        },
    ),
    "pretrain": TableSpec(
        "pretrain",
        "arm",
        (
            Column("loss", "score.final", 1, 2),
            Column("minus AdamW, paired", "score.final", 1, 2, minus="adamw"),
            UNCHANGED,
            RANK,
        ),
        {
            "adamw": "AdamW 3e-3",
            "sgd": "SGD 0.3",
            "sgd-momentum-lr0.3": "SGD 0.3, momentum 0.9",
            "sgd-momentum-lr1": "SGD 1.0, momentum 0.9",
            "sgd-ll": "SGDLL 1000 (momentum 0.9, head rows 1e-3, update 5e-4)",
        },
    ),
    "rl-against-sft-smollm2": TableSpec(
        "rl_against_sft_smollm2",
        "at the last step",
        (
            ACCURACY,
            UNCHANGED,
            RANK,
            Column("displacement", "measures.update/displacement", digits=3),
            Column("std over mean of sqrt(v)", "measures.dynamics/sqrt_v_cv", digits=2),
            Column(r"\|\|m\|\| / \|\|g\|\|", "measures.dynamics/history_ratio", digits=2),
            Column("cos(m, g)", "measures.dynamics/momentum_gradient_cosine", digits=2),
        ),
        {"rl-adamw": "RL, AdamW 1e-5, 32 rows", "sft-adamw": "SFT, AdamW 1e-5, 32 rows"},
    ),
}


def table_of(name: str) -> str:
    """One of `TABLES` in Markdown."""
    spec = TABLES[name]
    arms = study(spec.study)
    lines = [[spec.first, *(c.title for c in spec.columns)], ["---"] * (1 + len(spec.columns))]
    lines += [[row, *(c.cell(arms, arm) for c in spec.columns)] for arm, row in spec.rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
