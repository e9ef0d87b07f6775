"""The page itself: everything that was read and computed, through one template."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import rlsgd
from rlsgd.report import tables
from rlsgd.report.comparisons import compare
from rlsgd.report.figures import draw
from rlsgd.report.heatmaps import sparsity_heatmaps
from rlsgd.report.redaction import redacted, redacted_text
from rlsgd.report.samples import side_by_side
from rlsgd.report.sources import ReportedRun, Source
from rlsgd.study.scores import SCORES
from rlsgd.study.summary import representatives, summarise

TEMPLATES = Path(rlsgd.__file__).parent / "assets" / "report"


def render(
    sources: Sequence[Source], command: str, *, baseline: str | None, prompts: int
) -> tuple[str, dict[str, bytes]]:
    """The page as HTML, and its figures as PNG files by name.

    Args:
        sources: What was reported on.
        command: That made the page.
        baseline: Arm that the others are tested against; None tests every pair.
        prompts: At how many prompts completions are shown, at most.

    Raises:
        ValueError: `baseline` is no arm that is compared, or a file of a run cannot be read.
    """
    runs = [run for source in sources for run in source.runs]
    arms = summarise([run.record for run in runs])
    score = SCORES[sources[0].study["score"]]
    chosen = representatives(arms, score)
    names = [arm["name"] for arm in chosen]
    if baseline is not None and baseline not in names:
        raise ValueError(
            f"--baseline {baseline} is none of the arms that are compared: {', '.join(names)}"
        )
    swept = any(arm["sweep"] for arm in chosen)
    figures = draw(runs, arms, chosen, score)
    sections = [
        tables.outcome(arms, score),
        tables.optimizers(arms),
        tables.paired_tests(compare(chosen, runs, baseline), score, swept),
        *tables.learning_rates(arms, score),
        tables.updates(arms),
        tables.measures(arms),
        *tables.matched(sources, score),
        tables.memory(arms),
    ]
    page = (
        _environment()
        .get_template("page.html")
        .render(
            title=" and ".join(dict.fromkeys(source.title for source in sources)),
            sources=[_described(source) for source in sources],
            tables=[table for table in sections if table is not None],
            figures=[
                (title, f"data:image/png;base64,{b64encode(data).decode('ascii')}")
                for title, data in figures.values()
            ],
            swept=swept,
            heatmaps=sparsity_heatmaps(runs, names),
            samples=side_by_side(runs, names, prompts),
            run_list=tables.run_list(sources, score),
            errors=[(name, redacted_text(text)) for name, text in tables.errors(runs)],
            command=redacted_text(command),
            version=rlsgd.__version__,
            counts=(len(runs), len(arms), len({run.record["seed"] for run in runs})),
        )
    )
    return page, {f"{name}.png": data for name, (_, data) in figures.items()}


def _environment() -> Environment:
    """Every value is escaped: completions, names and commands are whatever somebody wrote."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _described(source: Source) -> dict[str, Any]:
    """What the page says about where numbers come from, without credentials."""
    study = source.study
    machine = study.get("machine") or {}
    size = machine.get("memory_bytes")
    facts = {
        "date": study.get("date"),
        **{name: number for name, number in (study.get("versions") or {}).items()},
        "processor": machine.get("processor"),
        "cores": machine.get("cores"),
        "memory": f"{size / 2**30:.0f} GiB" if size else None,
        "platform": machine.get("platform"),
    }
    return {
        "title": source.title,
        "question": study["question"].strip(),
        "chosen_by": study["learning_rates_chosen_by"].strip(),
        "command": redacted_text(study["command"] or ""),
        "facts": [(name, str(fact)) for name, fact in facts.items() if fact is not None],
        "configs": _configs(source.runs),
    }


def _configs(runs: Sequence[ReportedRun]) -> list[tuple[str, str]]:
    """The whole configuration of the first run of each arm, but for where it wrote."""
    first = {run.record["name"]: run for run in reversed(runs)}
    configs = []
    for run in runs:
        if first[run.record["name"]] is run and run.config is not None:
            config = redacted(run.config)
            trainer = config.get("trainer") or {}
            kept = {k: v for k, v in trainer.items() if k not in ("logger", "default_root_dir")}
            text = yaml.safe_dump(config | {"trainer": kept}, sort_keys=False, allow_unicode=True)
            configs.append((f"{run.record['name']}, seed {run.record['seed']}", text))
    return configs
