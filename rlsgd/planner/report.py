"""What `rlsgd memory` shows: a record for JSON, tables, and bars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlsgd.planner.architecture import Architecture
from rlsgd.planner.optimizers import OptimizerSize
from rlsgd.planner.plan import plan, smallest_gpus
from rlsgd.planner.sampling import engine_bytes
from rlsgd.planner.setup import Setup
from rlsgd.planner.traffic import ddp_bytes, fsdp_bytes, sync_bytes

Row = tuple[str, Callable[[dict[str, Any]], str]]


def make_record(
    model: Architecture,
    optimizers: list[OptimizerSize],
    setup: Setup,
    *,
    gpu_bytes: float,
    changed_share: float,
) -> dict[str, Any]:
    """Everything as plain data, in bytes of one GPU unless the name says otherwise."""
    sync = sync_bytes(model.num_weights, changed_share, setup.sampler_item)
    record: dict[str, Any] = {
        "model": model.name,
        "weights": model.num_weights,
        "setup": asdict(setup),
        "gpu_bytes": gpu_bytes,
        "optimizers": {},
        "weight_sync_bytes": {"changed_share": changed_share, **asdict(sync)},
        "engine_bytes": engine_bytes(model, setup) if setup.sampler == "server" else {},
    }
    for optimizer in optimizers:
        planned = plan(model, optimizer, setup)
        weights_and_state = planned.terms["weights"] + planned.terms.get("optimizer state", 0)
        record["optimizers"][optimizer.name] = {
            "terms": planned.terms,
            "moments": planned.moments,
            "peaks": planned.peaks,
            "peak": planned.peak,
            "peak_moment": planned.peak_moment,
            "weights_and_state_of_all_gpus": weights_and_state * setup.gpus,
            "microbatch": planned.setup.batch.rows,
            "gradient_traffic": _gradient_traffic(model, planned.setup),
            "fits": planned.peak <= gpu_bytes,
            "smallest_gpus": smallest_gpus(model, optimizer, setup, gpu_bytes),
            "notes": _notes(model, optimizer),
        }
    return record


def _gradient_traffic(model: Architecture, setup: Setup) -> int:
    """What one GPU receives from the others in one optimizer step."""
    if setup.sharded:
        microbatches = -(-setup.minibatch // setup.microbatch)
        compute = setup.dtypes.compute
        return fsdp_bytes(model.num_weights, setup.gpus, microbatches, compute=compute)
    return ddp_bytes(model.num_weights, setup.gpus, gradient=setup.dtypes.weight)


def _notes(model: Architecture, optimizer: OptimizerSize) -> list[str]:
    notes = []
    if model.decoder is None:
        notes.append(
            "activations and logits are not in it: they are known of Llama, Mistral, Qwen2 and "
            "Qwen3 alone, so that the peak is larger and more GPUs are needed"
        )
    if not optimizer.has_known_workspace:
        notes.append(
            f"what a step of {optimizer.class_name} needs besides its state is not known, so that "
            "the peak may be larger"
        )
    return notes


def print_record(console: Console, record: dict[str, Any]) -> None:
    """Tables of the terms, the moments and the sizes; then traffic and what is not in it."""
    setup, plans = record["setup"], record["optimizers"]
    gpus = (
        f"{setup['gpus']} {setup['accelerator'].upper()}s"
        if setup["gpus"] > 1
        else "one " + (setup["accelerator"].upper())
    )
    sharding = f", {setup['strategy']}" if setup["gpus"] > 1 else ""
    title = f"{record['model']}: {record['weights']:,} weights, {setup['precision']}, {gpus}"
    console.print(
        f"{title}{sharding}; GB are 10^9 bytes, on one GPU", soft_wrap=True, highlight=False
    )

    def size_row(group: str, name: str) -> Row:
        return name, lambda found: readable(found[group].get(name, 0))

    def rows_of(group: str) -> list[Row]:
        names = dict.fromkeys(name for found in plans.values() for name in found[group])
        return [size_row(group, name) for name in names]

    capacity = readable(round(record["gpu_bytes"]))
    summary: list[Row] = [
        ("peak", lambda found: readable(found["peak"])),
        ("at", lambda found: found["peak_moment"]),
        (
            "weights + state, all GPUs",
            lambda found: readable(found["weights_and_state_of_all_gpus"]),
        ),
        ("microbatch", lambda found: str(found["microbatch"])),
        (f"fits {capacity}", lambda found: "yes" if found["fits"] else "no"),
        (f"fewest GPUs of {capacity}", lambda found: str(found["smallest_gpus"] or "none")),
        ("gradient traffic a step", lambda found: readable(found["gradient_traffic"])),
    ]
    for heading, rows in (
        ("term, at its largest", rows_of("terms")),
        ("all terms at", rows_of("peaks")),
        ("", summary),
    ):
        table = Table()
        table.add_column(heading)
        for name in plans:
            table.add_column(name.rpartition(".")[2].rstrip("}"), justify="right", overflow="fold")
        for name, cell in rows:
            table.add_row(_named(name, setup), *(cell(found) for found in plans.values()))
        console.print(table)
    sync = record["weight_sync_bytes"]
    lines = [
        f"weights to one sampler: {readable(sync['dense'])} dense, {readable(sync['sparse'])} "
        f"sparse where an update changes {100 * sync['changed_share']:.4g} % of them"
    ]
    if engine := record["engine_bytes"]:
        lines.append(
            "an engine's GPU: " + ", ".join(f"{k} {readable(v)}" for k, v in engine.items())
        )
    lines += [f"{name}: {note}" for name, found in plans.items() for note in found["notes"]]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _named(term: str, setup: dict[str, Any]) -> str:
    if term == "weights" and setup["precision"] == "bf16-mixed":
        return "weights (float32 master copies)"
    return term


def readable(size: int) -> str:
    """Bytes with three digits and a decimal unit."""
    if size == 0:
        return "0"
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            digits = max(0, 2 - len(str(int(size / factor))) + 1)
            return f"{size / factor:,.{digits}f} {unit}"
    return f"{size} B"


def draw(record: dict[str, Any], path: Path) -> None:
    """A bar for each optimizer: the terms that make up its peak, and the size of a GPU."""
    from matplotlib.figure import Figure

    plans = record["optimizers"]
    parts = {name: found["moments"][found["peak_moment"]] for name, found in plans.items()}
    terms = list(dict.fromkeys(term for part in parts.values() for term in part))
    figure = Figure(figsize=(9, 1.8 + 0.5 * len(plans)), layout="constrained")
    axes = figure.subplots()
    labels = [
        f"{name.rpartition('.')[2].rstrip('}')}\n({plans[name]['peak_moment']})" for name in plans
    ]
    left = [0.0] * len(plans)
    for term in terms:
        sizes = [part.get(term, 0) / 1e9 for part in parts.values()]
        axes.barh(labels, sizes, left=left, label=_named(term, record["setup"]))
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    capacity = record["gpu_bytes"] / 1e9
    if capacity < 3 * max(left):
        axes.axvline(capacity, color="black", linestyle="--", label=f"GPU, {capacity:.4g} GB")
    axes.invert_yaxis()
    axes.set_xlabel("GB (10^9 bytes) on one GPU at the peak")
    axes.set_title(f"{record['model']}, {record['setup']['precision']}")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=150)
