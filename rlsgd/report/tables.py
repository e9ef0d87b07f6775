"""The tables of the page: plain texts, which the template escapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlsgd.report.comparisons import Comparison
from rlsgd.report.sources import ReportedRun, Source
from rlsgd.study.as_run import arguments_shown, optimizer_label
from rlsgd.study.scores import Score
from rlsgd.study.summary import ArmSummary, best_rule, summarise, sweeps
from rlsgd.study.tables import (
    MISSING,
    change,
    horizon,
    number,
    rate_rows,
    seed_count,
    shown,
    significant,
)

_MEMORY = {
    "weights": "parameter_bytes",
    "gradients": "gradient_bytes",
    "optimizer state": "optimizer_state_bytes",
    "peak of the process": "peak_rss_bytes",
    "peak of the device": "peak_device_bytes",
}


@dataclass(frozen=True)
class Table:
    """A table with what has to be known to read it.

    Args:
        title: Above it.
        header: One text for each column; the first column names the row.
        rows: Of the same length as the header.
        notes: Paragraphs below.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def outcome(arms: Sequence[ArmSummary], score: Score) -> Table:
    """Rewards and scores of every arm."""
    header = ["arm", f"{score.label}, base → final", "reward, first → last epoch", "seeds"]
    header += ["learning rate", "optimizer", "precision"]
    rows = [
        [
            arm["name"],
            change(arm, "score", ("base", "final"), score.scale, score.digits),
            change(arm, "reward", ("first", "last"), 1, 3),
            seed_count(arm),
            f"{arm['learning_rate']:g}",
            optimizer_label(arm.runs[0]),
            arm["precision"],
        ]
        for arm in arms
    ]
    note = (
        "± is half a 95% t-interval over seeds; one seed has none. Means cover finished runs only:"
        " where a run diverged or failed, the column of seeds says so."
    )
    return Table("Outcome", header, rows, [note])


def optimizers(arms: Sequence[ArmSummary]) -> Table | None:
    """Arguments of every arm's optimizers as they ran; None where no run read them back."""
    rows = [[arm["name"], *found] for arm in arms for found in arguments_shown(arm.runs[0])]
    if not rows:
        return None
    note = (
        "Read from the optimizer's groups when training began, the critic's below the policy's;"
        " what is false or none is left out, and groups that differ stand after a semicolon."
    )
    return Table("Optimizers as they ran", ["arm", "class", "arguments"], rows, [note])


def updates(arms: Sequence[ArmSummary]) -> Table:
    """What training did to the weights."""
    header = ["arm", "unchanged, bf16 view [%]", "unchanged, fp32 [%]", "|Δ| ≤ 1e-5, fp32 [%]"]
    header += ["effective rank [% of full]", "effective rank", "weights", "horizon"]
    rows = [
        [
            arm["name"] + suffix,
            *(
                shown(arm.estimate(group, key), 100, 2)
                for key in ("unchanged_bf16", "unchanged_fp32", "within_1e-5")
            ),
            *(
                shown(arm.estimate(group, key), 1, 1)
                for key in ("effective_rank_percent", "effective_rank")
            ),
            arm["precision"],
            horizon(arm),
        ]
        for arm in arms
        for group, suffix in (("update", ""), ("value_update", ", critic"))
        if group == "update" or _measured(arm, group, "unchanged_fp32")
    ]
    note = (
        "Against the starting weights, at the end of training. Unchanged: tolerance 0. Effective"
        " rank: singular values that hold 99% of the squared norm of a matrix's update, mean over"
        " matrices. Compare these figures only where dtype, tolerance, horizon and model agree."
    )
    return Table("What training changed", header, rows, [note])


def paired_tests(comparisons: Sequence[Comparison], score: Score, swept: bool) -> Table | None:
    """Differences between arms with their tests; None where there is nothing to compare."""
    if not comparisons:
        return None
    header = ["arm minus arm", f"final {score.title} [{score.difference_unit}]", "p"]
    header += ["unchanged, bf16 view [percentage points]", "p", "seeds paired"]
    rows = []
    for found in comparisons:
        scored, unchanged = found.differences
        rows.append(
            [
                f"{found.arm} minus {found.baseline}",
                shown(scored, score.scale, score.digits, sign=True),
                _probability(found.p_values[0]),
                shown(unchanged, 100, 2, sign=True),
                _probability(found.p_values[1]),
                str(scored.num_seeds if scored else 0),
            ]
        )
    notes = [
        "Paired t-tests: the difference at each seed first, then mean ± half its 95% interval."
        " Runs are paired where seed, model and data agree: they saw the same prompts in the same"
        " order. p is two-sided and adjusted for the number of comparisons in its column (Holm);"
        " the intervals are not. Few seeds resolve large differences only."
    ]
    if swept:
        notes.append(
            "A swept arm stands here with the best of its rates, chosen on these same runs: that"
            " favours it. Confirm the difference on fresh seeds."
        )
    return Table("Paired tests between arms", header, rows, notes)


def learning_rates(arms: Sequence[ArmSummary], score: Score) -> list[Table]:
    """One table for each swept arm."""
    tables = []
    for name, rates in sweeps(arms).items():
        rows = rate_rows(rates, score, best="best")
        header = ["learning rate", "seeds", f"final {score.label}", "reward, last epoch", ""]
        label = optimizer_label(rates[0].runs[0])
        title = f"Learning rates of {name} ({label}, {rates[0]['precision']})"
        tables.append(Table(title, header, rows, [f"Best: {best_rule(score)}"]))
    return tables


def measures(arms: Sequence[ArmSummary]) -> Table | None:
    """Further metrics that the studies asked for; None without any."""
    columns = list(dict.fromkeys(c for arm in arms for c in arm.runs[0].get("measures") or {}))
    if not columns:
        return None
    rows = [
        [
            arm["name"],
            *(
                significant(arm.estimate("measures", column))
                if all(column in run["measures"] for run in arm.runs)
                else MISSING
                for column in columns
            ),
        ]
        for arm in arms
    ]
    return Table("Measures at the end", ["arm", *columns], rows, [])


def memory(arms: Sequence[ArmSummary]) -> Table:
    """Bytes of each arm, largest of a run, mean over seeds; only of what was measured."""
    measured = {
        title: key
        for title, key in _MEMORY.items()
        if any(_measured(a, "memory", key) for a in arms)
    }
    rows = [
        [arm["name"], *(shown(arm.estimate("memory", key), 2**-20, 2) for key in measured.values())]
        for arm in arms
    ]
    return Table("Memory", ["arm", *(f"{title} [MiB]" for title in measured)], rows, [])


def matched(sources: Sequence[Source], score: Score) -> list[Table]:
    """Arms where a growing metric has one value in all of a study's runs, by study."""
    columns = {score.column: (score.label, score.scale, score.digits)}
    columns |= {
        f"update/{key}": (f"{title} [%]", 100, 2)
        for key, title in {
            "unchanged_bf16": "unchanged, bf16 view",
            "unchanged_fp32": "unchanged, fp32",
            "within_1e-5": "|Δ| ≤ 1e-5, fp32",
        }.items()
    }
    columns["update/effective_rank_percent"] = ("effective rank [% of full]", 1, 1)
    columns["epoch"] = ("epoch", 1, 1)
    tables = []
    for source in sources:
        found = source.study.get("matched")
        if found is not None:
            arms = summarise([run.record for run in source.runs])
            rows = [
                [
                    arm["name"],
                    *(
                        shown(arm.estimate("matched", column), scale, digits)
                        for column, (_, scale, digits) in columns.items()
                    ),
                ]
                for arm in arms
            ]
            note = (
                f"Every run where its {found['column']} is {found['at']:.4g}, the largest value"
                " that all of them reached, linear between measured epochs."
            )
            header = ["arm", *(title for title, *_ in columns.values())]
            tables.append(Table(f"At the same {found['column']}", header, rows, [note]))
    return tables


def run_list(sources: Sequence[Source], score: Score) -> Table:
    """Every run."""
    header = ["arm", "seed", f"final {score.label}", "status", "epochs", "seconds", "from"]
    rows = [
        [
            record["name"],
            str(record["seed"]),
            number(record["score"]["final"], score.scale, score.digits),
            record["status"],
            str(record["epochs"]),
            f"{record['seconds']:.0f}" if record.get("seconds") else MISSING,
            source.title,
        ]
        for source in sources
        for record in (run.record for run in source.runs)
    ]
    return Table("Runs", header, rows, [])


def errors(runs: Sequence[ReportedRun]) -> list[tuple[str, str]]:
    """Run and last lines of its log, for each run that failed."""
    return [
        (f"{run.record['name']}, seed {run.record['seed']}", run.record["error"])
        for run in runs
        if run.record["error"]
    ]


def _measured(arm: ArmSummary, group: str, key: str) -> bool:
    return all(group in run for run in arm.runs) and arm.estimate(group, key) is not None


def _probability(p: float | None) -> str:
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
