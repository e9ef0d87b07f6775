"""Measures whole iterations of rlsgd and of TRL's GRPOTrainer, in turns, on one machine.

    python -m benchmarks.bench                                   # every case, about 20 minutes
    python -m benchmarks.bench --case smollm2 --repeats 5 --json bench.json
    python -m benchmarks.bench --case smollm2 --rlsgd trainer.accumulate_grad_batches=4
    python -m benchmarks.bench_tables docs/performance.md bench.json

An iteration is sampling, scoring, update and logging. Each side is a process of its own, and they
run one iteration each in turns; the one that waits sleeps. Same model, prompts, reward, number of
tokens, threads; float32, plain SGD, no KL. Before each case both sides must compute the same loss
and gradients from the same rollout. SmolLM2 is needed: rlsgd data prepare smollm2, once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.bench_cases import CASES, Case, model_folder
from benchmarks.bench_limit import Shape, limit, needed, products, rate
from benchmarks.bench_sides import SIDES, Overrides, check, measure
from benchmarks.bench_summary import ratios, side_summary, with_diagnostics
from benchmarks.bench_tables import print_tables
from rlsgd.study.results import machine, versions

OF_A_CASE = ("times", "ratios", "memory", "diagnostics", "limit")


def rates(case: Case, folder: str, prompt_tokens: list[int], threads: int) -> dict[str, float]:
    """Operations a second of the case's products."""
    import torch

    torch.set_num_threads(threads)
    named = products(Shape.of(folder), prompt_tokens, case.group, case.completion_tokens)
    return {name: rate(*product) for name, product in named.items()}


def run_case(
    case: Case, scratch: Path, overrides: Overrides, threads: int, progress: Progress
) -> dict[str, Any]:
    """One case, whole: what is written to the JSON file."""
    folder = scratch / f"case_{case.name}"
    agreement = check(case, folder, overrides, threads)
    if not agreement["agree"]:
        raise SystemExit(f"{case.name}: the sides do not compute the same: {agreement}")
    measured, diagnosed = measure(case, folder, overrides, threads, progress)
    sides = {side: side_summary(measured[side]) for side in SIDES}
    model = model_folder(case.model, scratch)
    prompt_tokens = measured["trl"][-1]["prompt_tokens"]
    counts = {
        name: needed(
            *(Shape.of(model), prompt_tokens, case.group, case.completion_tokens), shared=shared
        )
        for name, shared in (("shared", True), ("separate", False))
    }
    speeds = rates(case, model, prompt_tokens, threads)
    cadence = {"UpdateSparsity": case.sparsity_every, "EffectiveRank": case.rank_every}
    return {
        "case": asdict(case),
        "overrides": overrides,
        "agreement": agreement,
        "iterations": measured,
        "sides": sides,
        "ratios": ratios(measured),
        "with_diagnostics": with_diagnostics(measured["rlsgd"], diagnosed, cadence),
        "operations": counts,
        "rates": speeds,
        "limit": {
            side: limit(counts["shared"], speeds, sides[side]["seconds"]["median"])
            for side in SIDES
        },
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--case", choices=CASES, action="append", help="only this; may be given again")
    add("--model", help="another model for the chosen cases: a folder")
    add("--repeats", type=int, help="measured iterations of each side")
    add("--threads", type=int, default=2, help="of each side, for torch (default: 2)")
    add("--json", type=Path, help="write everything there, after each case")
    add("--check", action="store_true", help="only compare loss and gradients")
    flags = "a further flag of rlsgd fit, such as trainer.accumulate_grad_batches=4"
    fields = "a further field of GRPOConfig, in JSON, or microbatches=N"
    add("--rlsgd", action="append", default=[], metavar="KEY=VALUE", help=flags)
    add("--trl", action="append", default=[], metavar="KEY=VALUE", help=fields)
    for size in ("prompts", "group", "completion_tokens"):
        add(f"--{size}", type=int, help="instead of the case's")
    return parser.parse_args(arguments)


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The cases asked for, with the sizes asked for."""
    names = ("model", "repeats", "prompts", "group", "completion_tokens")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if any(isinstance(value, int) and value < 1 for value in (*given.values(), options.threads)):
        raise SystemExit("numbers must be at least 1")
    return [replace(CASES[name], **given) for name in options.case or CASES]


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    overrides = {"rlsgd": options.rlsgd, "trl": options.trl}
    found: dict[str, Any] = {
        "machine": machine(),
        "versions": versions() | {"trl": version("trl")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": options.threads,
        "cases": [],
    }
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory() as scratch,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        for case in chosen_cases(options):
            if options.check:
                folder = Path(scratch) / f"case_{case.name}"
                agreement = check(case, folder, overrides, options.threads)
                console.print(case.name, agreement)
                if not agreement["agree"]:
                    raise SystemExit(1)
                continue
            done = run_case(case, Path(scratch), overrides, options.threads, progress)
            found["cases"].append(done)
            print_tables(console, list(OF_A_CASE), found | {"cases": [done]})
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if len(found["cases"]) > 1:
        print_tables(console, ["ratios"], found)


if __name__ == "__main__":
    main(sys.argv[1:])
