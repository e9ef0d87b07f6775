"""Compare what every study under docs/ ran with its classes' defaults, its config and its text.

    python tools/check_studies.py [--docs docs]

Of each `docs/STUDY/results.json`: every run is an arm of the study's config, with its optimizer,
rate, precision and seeds, and the other way round; every argument that ran is the one stated, or
the default of the optimizer's own class; the rows of `report.md` name the optimizer and the rate
that ran; every optimizer that a table of `findings.md` names with arguments ran with those.

What ran is what the record says was read back from the optimizer. Records from before there was
such a thing hold no arguments. Then torch.optim.SGD's defaults ran in place of a class's own,
wherever the two share an argument that nobody had stated; for these records that is what is taken
to have run. Prints one line for each disagreement, and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from rlsgd.study.arms import load_study
from rlsgd.study.expansion import Run, expand_runs

READ_BACK = "optimizers"  # key of a run's record, where the arguments were read back
ROLES = ("optimizer", "value_optimizer")  # in the order of what was read back
NAMES = {  # as the tables of findings.md call them
    "AdamW": "torch.optim.AdamW",
    "RMSProp": "torch.optim.RMSprop",
    "SignSGD": "rlsgd.optimizers.SignSGD",
    "SGDLL": "rlsgd.optimizers.SGDLL",
    "SGD": "torch.optim.SGD",
}
ARGUMENTS = {
    "momentum": "momentum",
    "decay": "weight_decay",
    "head rows": "head_row_clip",
    "update": "update_rms_clip",
}
NUMBER = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"


def main() -> int:
    """Print what disagrees; 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the studies")
    docs = parser.parse_args().docs
    found = sorted(docs.glob("*/results.json"))
    wrong = [line for file in found for line in check(file)]
    print("\n".join(wrong) or f"{len(found)} studies under {docs}: what ran is what is written")
    return 1 if wrong or not found else 0


def check(results: Path) -> list[str]:
    """What disagrees in one study, a line each, with the folder's name in front."""
    record = json.loads(results.read_text(encoding="utf-8"))
    config = Path(record["study"]["command"].split()[-1])
    runs = {(run.arm.name, run.seed): run for run in expand_runs(load_study(config))}
    ran = {(arm["name"], arm["seed"]): arm for arm in record["arms"]}
    lines = [f"{name} seed {seed} is not in {config}" for name, seed in ran.keys() - runs.keys()]
    lines += [f"{name} seed {seed} did not run" for name, seed in runs.keys() - ran.keys()]
    for place in ran.keys() & runs.keys():
        lines += [
            f"{place[0]} seed {place[1]}: {m}" for m in run_against_config(ran[place], runs[place])
        ]
    lines += report_against_results(results.with_name("report.md"), record)
    lines += text_against_results(results.parents[1] / "findings.md", config, ran, runs)
    return [f"{results.parent.name}: {line}" for line in sorted(lines)]


def run_against_config(record: dict[str, Any], run: Run) -> Iterator[str]:
    """Optimizer, rate and precision as the config has them; every argument stated or a default."""
    arm = run.arm
    for key in ("optimizer", "learning_rate", "precision"):
        if record[key] != getattr(arm, key):
            yield f"{key} {record[key]} ran, the config says {getattr(arm, key)}"
    for role, class_path, asked in optimizers(run):
        own = defaults(class_path) | asked
        for group in arguments(record, role, class_path, asked):
            for name, value in group.items():
                if name in own and not same(value, own[name]):
                    says = "the config says" if name in asked else f"{class_path} has"
                    yield f"{role} ran with {name} {value}, {says} {own[name]}"


def optimizers(run: Run) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Role, class path and stated arguments (but for the rate) of each optimizer of a run."""
    base = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    for role in ROLES:
        found: dict[str, Any] = {}
        for config in (base, run.overlay):
            given = config.get("model", {}).get("init_args", {}).get(role, {})
            same_class = given.get("class_path", found.get("class_path")) == found.get("class_path")
            kept = found.get("init_args", {}) if same_class else {}
            found = found | given | {"init_args": kept | given.get("init_args", {})}
        if "class_path" in found:
            stated = {k: v for k, v in found["init_args"].items() if k != "lr"}
            yield role, found["class_path"], stated


def arguments(
    record: dict[str, Any], role: str, class_path: str, stated: dict[str, Any]
) -> list[dict[str, Any]]:
    """What each group of an optimizer ran with: as read back, or with SGD's defaults if shared."""
    if record.get(READ_BACK):
        return record[READ_BACK][ROLES.index(role)]["arguments"]
    own, inherited = defaults(class_path), defaults("torch.optim.SGD")
    return [own | {name: value for name, value in inherited.items() if name in own} | stated]


def defaults(class_path: str) -> dict[str, Any]:
    """An optimizer's own default arguments, but for the rate."""
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    return {
        key: parameter.default
        for key, parameter in parameters.items()
        if key not in ("params", "lr") and parameter.default is not parameter.empty
    }


def same(first: Any, second: Any) -> bool:
    """Equal, a list being as good as a tuple and 0 as good as 0.0."""
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def report_against_results(report: Path, record: dict[str, Any]) -> Iterator[str]:
    """Every arm has a row of the report with its optimizer and its rate."""
    text = report.read_text(encoding="utf-8")
    for arm in {arm["name"]: arm for arm in record["arms"]}.values():
        row = f"| {arm['name']} | {arm['optimizer']} | "
        rate = f" {arm['learning_rate']:g} |"
        if not any(line.startswith(row) and rate in line for line in text.splitlines()):
            yield f"report.md has no row of {arm['name']} with {arm['optimizer']} and{rate[:-2]}"


def text_against_results(
    findings: Path,
    config: Path,
    ran: dict[tuple[str, int], dict[str, Any]],
    runs: dict[tuple[str, int], Run],
) -> Iterator[str]:
    """Every optimizer that a table of the study's sections names with arguments ran with those."""
    text = findings.read_text(encoding="utf-8") if findings.is_file() else ""
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        if f"`rlsgd study {config}`" not in section:
            continue
        for line in section.splitlines():
            cell = line.split("|")[1].strip() if line.startswith("|") else ""
            if said := named_optimizer(cell):
                class_path, given = said
                if not any(
                    ran_so(ran[at], runs[at], class_path, given) for at in ran if at in runs
                ):
                    yield f"findings.md says {cell!r}, and no arm ran so"


def named_optimizer(cell: str) -> tuple[str, dict[str, float]] | None:
    """Class path, rate (as `lr`) and arguments that "SGD 3e-3, momentum 0.9" names."""
    names = "|".join(NAMES)
    if not (found := re.search(rf"\b({names})\b(?: {NUMBER})?", cell)):
        return None
    given = {"lr": float(found[2])} if found[2] else {}
    for word, argument in ARGUMENTS.items():
        if value := re.search(rf"\b{word} {NUMBER}", cell):
            given[argument] = float(value[1])
    return NAMES[found[1]], given


def ran_so(record: dict[str, Any], run: Run, class_path: str, given: dict[str, float]) -> bool:
    """Whether the policy's optimizer was of that class, and had that rate and those arguments."""
    _, used, stated = next(optimizers(run))
    rate = {"lr": record["learning_rate"]}  # a group's own has been through a scheduler
    groups = [group | rate for group in arguments(record, "optimizer", used, stated)]
    return used == class_path and any(
        all(group.get(name) == value for name, value in given.items()) for group in groups
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
