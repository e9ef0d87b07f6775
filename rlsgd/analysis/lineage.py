"""`rlsgd lineage CHECKPOINT BASE ...`: which of several models a checkpoint was tuned from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlsgd.analysis.checkpoint_files import is_weight, open_checkpoint
from rlsgd.analysis.first_look import count
from rlsgd.core.command import PlainParser, run_command
from rlsgd.core.stored import StoredTensors

_DESCRIPTION = (
    "Rank candidate bases by the share of CHECKPOINT's weights that equal theirs in bfloat16, "
    "tensors of one name and shape compared. Tuning leaves many equal; of two models trained apart "
    "hardly any are, and |w - w0| / |w0| is near 1 or above. Exit status: 0, or 2 if a checkpoint "
    "cannot be read."
)


def main(argv: Sequence[str]) -> int:
    """Run `rlsgd lineage` on what follows it, and return its exit status."""
    return run_command("lineage", argv, _parser(), _run)


def _run(arguments: Any) -> None:
    checkpoint = open_checkpoint(arguments.CHECKPOINT, "CHECKPOINT")
    bases = {name: open_checkpoint(name, "BASE") for name in arguments.BASE}
    ranked = lineage(checkpoint, bases)
    if arguments.json:
        print(json.dumps({"checkpoint": arguments.CHECKPOINT, "bases": ranked}, indent=2))
        return
    table = Table(title=f"what {arguments.CHECKPOINT} was tuned from", title_justify="left")
    table.add_column("base", overflow="fold")
    for column in ("compared %", "equal in\nbf16 %", "|w - w0| / |w0|"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in ranked:
        distance = one["relative_displacement"]
        table.add_row(
            one["base"],
            f"{100 * one['compared']:.4g}",
            f"{100 * one['equal_bf16']:.4g}",
            "-" if distance is None else f"{distance:.4g}",
        )
    Console().print(table)


def lineage(checkpoint: StoredTensors, bases: dict[str, StoredTensors]) -> list[dict[str, Any]]:
    """The candidates, the likeliest first.

    Args:
        checkpoint: what was tuned.
        bases: candidates by name.

    Returns:
        For each: `base`; `compared`, the share of the checkpoint's weights in tensors that the base
        has too in the same shape; `equal_bf16`, the share of all its weights that equal the base's
        in bfloat16; `relative_displacement` ||w - w0|| / ||w0|| over those compared, None where
        nothing is or a value is not finite.

    Raises:
        ValueError: the checkpoint holds no weights, or one is quantised.
    """
    specs = {name: checkpoint.spec(name) for name in checkpoint.files}
    weights = {n: s for n, s in specs.items() if is_weight(s, n, "CHECKPOINT")}
    total = sum(spec.numel for spec in weights.values())
    if not total:
        raise ValueError("CHECKPOINT: holds no weights")
    counts = {name: np.zeros(5) for name in bases}
    for tensor, spec in weights.items():
        now = checkpoint.stored(tensor)
        for name, base in bases.items():
            if tensor not in base or base.shape(tensor) != spec.shape:
                continue
            if is_weight(base.spec(tensor), tensor, f"BASE {name}"):
                counts[name] += count(now, base.stored(tensor).rounded(spec.dtype))
    return sorted(
        (_record(name, counted, total) for name, counted in counts.items()),
        key=lambda one: (-one["equal_bf16"], one["relative_displacement"] or math.inf),
    )


def _record(name: str, counted: np.ndarray, total: int) -> dict[str, Any]:
    compared, _, equal, moved, initial = counted.tolist()
    finite = initial and math.isfinite(moved / initial)
    return {
        "base": name,
        "compared": compared / total,
        "equal_bf16": equal / total,
        "relative_displacement": math.sqrt(moved / initial) if finite else None,
    }


def _parser() -> PlainParser:
    parser = PlainParser(prog="rlsgd lineage", description=_DESCRIPTION)
    what = "model folder, hub name, prepared name or .safetensors file"
    parser.add_argument("CHECKPOINT", help=f"what was tuned: {what}, or Lightning .ckpt file")
    parser.add_argument("BASE", nargs="+", help=f"candidates: {what}")
    parser.add_argument("--json", action="store_true", help="print numbers, not a table")
    return parser
