"""The report of a study: report.md for people, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from rlsgd.study.as_run import optimizer_label, optimizers_section
from rlsgd.study.evaluations import evaluations_section
from rlsgd.study.published import published_section
from rlsgd.study.scores import SCORES, Score
from rlsgd.study.summary import (
    ArmSummary,
    best_rule,
    paired_difference,
    representatives,
    summarise,
    sweeps,
)
from rlsgd.study.tables import (
    change,
    horizon,
    number,
    rate_rows,
    seed_count,
    shown,
    significant,
    table,
)

# columns that supervised training has nothing for
_REWARD_CHANGE, _LAST_REWARD = "reward, first → last epoch", "reward of the last epoch"


def markdown_report(results: dict[str, Any], plots: Sequence[tuple[str, str]]) -> str:
    """The whole of report.md.

    Args:
        results: What `results.json` holds.
        plots: Title and relative path of every figure.
    """
    arms = summarise(results["arms"])
    score = study_score(results)
    parts = [
        _head(results),
        "## Outcome",
        _rates_line(results),
        table(*_outcome_rows(arms, score), optional=_REWARD_CHANGE),
        _seeds_line(results),
        *optimizers_section(arms),
        *_differences(results, arms, score),
        *_sweep_tables(results, arms, score),
        *_update_section(results, arms),
        *_measures_section(results, arms),
        *_matched_section(results, arms, score),
        *published_section(results["study"].get("published") or []),
        *evaluations_section(arms),
        *_memory_section(results, arms),
        *_failures(results["arms"]),
    ]
    if plots:
        parts.append("## Figures")
        parts += [f"![{title}]({path})" for title, path in plots]
    parts += ["## Where it ran", _provenance(results["study"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def terminal_table(results: dict[str, Any]) -> Table:
    """The outcome table in short."""
    outcome = Table(title=results["study"]["name"])
    outcome.add_column("arm", no_wrap=True)
    score = study_score(results)
    for column in ("rate", "seeds", "reward", score.label, "unchanged [%]\n(bf16 view)"):
        outcome.add_column(column)
    for arm in summarise(results["arms"]):
        outcome.add_row(
            arm["name"],
            f"{arm['learning_rate']:g}",
            seed_count(arm),
            change(arm, "reward", ("first", "last"), 1, 2),
            change(arm, "score", ("base", "final"), score.scale, score.digits),
            shown(arm.estimate("update", "unchanged_bf16"), 100, 1),
        )
    return outcome


def study_score(results: dict[str, Any]) -> Score:
    """What the study behind a `results.json` was decided by."""
    return SCORES[results["study"]["score"]]


def _head(results: dict[str, Any]) -> str:
    study = results["study"]
    question = f"{study['question'].strip()}\n\n" if study["question"].strip() else ""
    return f"# {study['name']}\n\n{question}```bash\n{study['command']}\n```"


def _rates_line(results: dict[str, Any]) -> str:
    chosen = results["study"]["learning_rates_chosen_by"].strip()
    return f"Learning rates chosen by: {chosen}" if chosen else ""


def _seeds_line(results: dict[str, Any]) -> str:
    seeds = results["study"]["seeds"]
    if len(seeds) == 1:
        return f"One seed ({seeds[0]}): no interval is given, because one run has no spread."
    return (
        f"Means over {len(seeds)} seeds ({', '.join(map(str, seeds))}); ± is half the 95%"
        " t-interval over seeds. Means cover finished runs only: where a seed diverged or failed,"
        " the column of seeds says so, and the mean is of the survivors."
    )


def _outcome_rows(arms: Sequence[ArmSummary], score: Score) -> tuple[list[str], list[list[str]]]:
    header = ["arm", "optimizer", "learning rate", "precision", "seeds"]
    header += [_REWARD_CHANGE, f"{score.label}, base → final"]
    return header, [
        [
            arm["name"],
            optimizer_label(arm.runs[0]),
            f"{arm['learning_rate']:g}",
            arm["precision"],
            seed_count(arm),
            change(arm, "reward", ("first", "last"), 1, 3),
            change(arm, "score", ("base", "final"), score.scale, score.digits),
        ]
        for arm in arms
    ]


def _differences(results: dict[str, Any], arms: Sequence[ArmSummary], score: Score) -> list[str]:
    compared = representatives(arms, score)
    if len(compared) < 2:
        return []
    baseline, *others = compared
    rows = []
    for arm in others:
        difference = paired_difference(arm, baseline)
        pairs = str(difference.num_seeds) if difference else "0"
        rows.append([arm["name"], pairs, shown(difference, score.scale, score.digits, sign=True)])
    header = ["arm", "seeds paired", f"minus {baseline['name']} [{score.difference_unit}]"]
    swept = any(arm["sweep"] for arm in compared)
    caveat = (
        "A swept arm stands here with the best of its rates, chosen on these same runs: that"
        " favours it. Confirm the difference on fresh seeds."
    )
    return [
        f"## Difference in final {score.title} from {baseline['name']}",
        _rates_line(results),
        table(header, rows),
        "Each seed's difference first, then the mean: arms with the same seed saw the same"
        " prompts in the same order." + (f" {caveat}" if swept else ""),
    ]


def _sweep_tables(results: dict[str, Any], arms: Sequence[ArmSummary], score: Score) -> list[str]:
    parts = []
    for name, rates in sweeps(arms).items():
        rows = rate_rows(rates, score, best="**best**")
        header = ["learning rate", "seeds", f"final {score.label}", _LAST_REWARD, ""]
        label = optimizer_label(rates[0].runs[0])
        parts += [
            f"## Learning rates of {name} ({label}, {rates[0]['precision']})",
            table(header, rows, optional=_LAST_REWARD),
        ]
    return [*parts, _rates_line(results), f"Best: {best_rule(score)}"] if parts else []


def _update_section(results: dict[str, Any], arms: Sequence[ArmSummary]) -> list[str]:
    horizons = {horizon(arm) for arm in arms if arm.finished}
    after = horizons.pop() if len(horizons) == 1 else "the arm's horizon"
    header = [
        "arm",
        "weights",
        "horizon",
        f"unchanged [%]<br>bf16 view, tolerance 0, after {after}",
        f"unchanged [%]<br>fp32 view, tolerance 0, after {after}",
        f"unchanged [%]<br>fp32 view, tolerance 1e-5, after {after}",
        f"effective rank<br>99% energy, after {after}",
        f"effective rank [% of full]<br>99% energy, after {after}",
    ]
    shares = ("unchanged_bf16", "unchanged_fp32", "within_1e-5")
    rows = [
        [
            arm["name"] + suffix,
            arm["precision"],
            horizon(arm),
            *(shown(arm.estimate(group, key), 100, 2) for key in shares),
            shown(arm.estimate(group, "effective_rank"), 1, 1),
            shown(arm.estimate(group, "effective_rank_percent"), 1, 1),
        ]
        for arm in arms
        for group, suffix in (("update", ""), ("value_update", ", critic"))
        if group == "update" or arm.estimate(group, "unchanged_fp32")
    ]
    return [
        "## What training changed",
        _rates_line(results),
        table(header, rows),
        "Against the starting weights. Unchanged: abs(weight - start) at most the tolerance, as"
        " share of all weights. Effective rank: singular values of a matrix's update that hold 99%"
        " of its squared norm, mean over matrices. These figures depend on dtype, tolerance,"
        " learning rate, horizon and model size (small models have larger gradients relative to"
        " their weights): compare them only where those agree.",
    ]


def _measures_section(results: dict[str, Any], arms: Sequence[ArmSummary]) -> list[str]:
    columns = list(results["arms"][0]["measures"])
    if not columns:
        return []
    rows = [
        [arm["name"], *(significant(arm.estimate("measures", column)) for column in columns)]
        for arm in arms
    ]
    return ["## Measures at the end", _rates_line(results), table(["arm", *columns], rows)]


def _matched_section(
    results: dict[str, Any], arms: Sequence[ArmSummary], score: Score
) -> list[str]:
    matched = results["study"]["matched"]
    if matched is None:
        return []
    shares = ["update/unchanged_bf16", "update/unchanged_fp32", "update/within_1e-5"]
    header = ["arm", "epoch", score.label, *(f"{name} [%]" for name in shares)]
    rows = [
        [
            arm["name"],
            shown(arm.estimate("matched", "epoch"), 1, 1),
            shown(arm.estimate("matched", score.column), score.scale, score.digits),
            *(shown(arm.estimate("matched", name), 100, 2) for name in shares),
            shown(arm.estimate("matched", "update/effective_rank_percent"), 1, 1),
        ]
        for arm in arms
    ]
    return [
        f"## At the same {matched['column']}",
        f"Every run where its `{matched['column']}` is {matched['at']:.4g}, the largest value that"
        " all of them reached, linear between measured epochs.",
        table([*header, "effective rank [% of full]"], rows),
    ]


def _memory_section(results: dict[str, Any], arms: Sequence[ArmSummary]) -> list[str]:
    keys = {
        "parameters": "parameter_bytes",
        "gradients": "gradient_bytes",
        "optimizer state": "optimizer_state_bytes",
        "peak process memory": "peak_rss_bytes",
        "peak device memory": "peak_device_bytes",
    }
    rows = [
        [arm["name"], *(shown(arm.estimate("memory", key), 2**-20, 2) for key in keys.values())]
        for arm in arms
    ]
    header = ["arm", *(f"{title} [MiB]" for title in keys)]
    return ["## Memory", _rates_line(results), table(header, rows)]


def _failures(runs: Sequence[dict[str, Any]]) -> list[str]:
    ended_early = [run for run in runs if run["status"] != "finished"]
    if not ended_early:
        return []
    rows = [
        [
            run["name"],
            str(run["seed"]),
            run["status"],
            str(run["epochs"]),
            number(run["reward"]["last"], 1, 3),
        ]
        for run in ended_early
    ]
    header = ["arm", "seed", "status", "epochs reached", "last reward"]
    logs = [
        f"{run['name']}, seed {run['seed']}:\n\n```text\n{run['error']}\n```"
        for run in ended_early
        if run["error"]
    ]
    return ["## Runs that did not finish", table(header, rows), *logs]


def _provenance(study: dict[str, Any]) -> str:
    machine = study["machine"]
    versions = ", ".join(f"{name} {number or '?'}" for name, number in study["versions"].items())
    return (
        f"{study['date']}; {versions}; {machine['processor'] or 'unknown processor'},"
        f" {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB;"
        f" {machine['platform']}."
    )
