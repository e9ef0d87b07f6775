"""`rlsgd predict-sparsity BASE`: the unchanged share to expect of an update of a given length."""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rlsgd.analysis.checkpoint_files import match, open_checkpoint, tied_heads
from rlsgd.core.layer_kinds import layer_of
from rlsgd.core.stored import StoredTensors
from rlsgd.functional.predicted_sparsity import (
    expected_unchanged,
    unchanged_after,
    within_tolerance,
)
from rlsgd.functional.updates import squared_norm

_DESCRIPTION = (
    "Predict which share of the weights an update of a given length ||w - w0|| leaves unchanged in "
    "bfloat16, and within a tolerance. Without --pilot all weights move alike, as is nearly so of "
    "AdamW, RMSProp and SignSGD; with it, in the proportions of another update, which SGD needs, "
    "since a few of its weights move far. A base that lies on bfloat16 numbers, as releases do, "
    "keeps more than one between them. Exit status: 0, or 2 if a checkpoint cannot be read or a "
    "number is out of its range."
)


def main(argv: Sequence[str]) -> int:
    """Run `rlsgd predict-sparsity` on what follows it, and return its exit status."""
    arguments = _parser().parse_args(list(argv))
    try:
        record = predict(
            arguments.BASE,
            arguments.displacement,
            pilot=arguments.pilot,
            tolerance=arguments.tolerance,
            round_base=arguments.round_base,
        )
    except ValueError as error:
        print(f"rlsgd predict-sparsity: error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(record, indent=2, allow_nan=False))
        return 0
    console = Console()
    console.print(_table(record))
    console.print(
        f"{record['weights']:,} weights, {100 * record['on_grid']:.4g}% of them bfloat16 numbers",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def predict(
    base: str,
    displacements: Sequence[float],
    *,
    pilot: str | None = None,
    tolerance: float = 1e-5,
    round_base: bool = False,
) -> dict[str, Any]:
    """The expected shares at each displacement, whole and by layer.

    Args:
        base: the checkpoint before training, see `open_checkpoint`.
        displacements: ||w - w0|| over all weights, each above 0.
        pilot: a checkpoint tuned from `base`, in whose proportions the weights move.
        tolerance: absolute, in units of the weight.
        round_base: take the bfloat16 numbers nearest to the base's weights for the base.

    Raises:
        ValueError: a checkpoint cannot be read or does not match, or a number is out of its range.
    """
    for displacement in displacements:
        if not 0 < displacement < math.inf:
            raise ValueError(f"--displacement {displacement:g}: a length is above 0")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"--tolerance {tolerance:g}: 0 or more, in units of the weight")
    weights = open_checkpoint(base, "BASE")
    tied = set(tied_heads(weights))
    names = [name for name in weights.files if name not in tied]
    tuned = None
    if pilot is not None:
        tuned = open_checkpoint(pilot, "--pilot")
        names = match(weights, tuned, (base, pilot), allow_missing=False).names
    count = sum(math.prod(weights.shape(name)) for name in names)
    length = 0.0
    if tuned is not None:
        squares = (float(squared_norm(distance(weights, tuned, name))) for name in names)
        if not (length := math.sqrt(sum(squares))):
            raise ValueError(f"--pilot {pilot}: it equals BASE, so there is nothing to scale")
    layers: dict[str, list[Shares]] = defaultdict(lambda: [Shares()] * len(displacements))
    on_grid = 0
    for name in names:
        weight = weights.stored(name).tensor().float()
        weight = weight.bfloat16().float() if round_base else weight
        on_grid += int((weight == weight.bfloat16().float()).sum())
        for index, displacement in enumerate(displacements):
            if tuned is None:
                size = displacement / math.sqrt(count)
                unchanged = float(expected_unchanged(weight, size))
                within = weight.numel() * within_tolerance(tolerance, size)
            else:
                moved = distance(weights, tuned, name).double() * (displacement / length)
                unchanged = float(unchanged_after(weight, moved))
                within = float((moved <= tolerance).sum())
            layers[str(layer_of(name))][index] += Shares(weight.numel(), unchanged, within)
    return {
        "base": base,
        "pilot": pilot,
        "tolerance": tolerance,
        "weights": count,
        "on_grid": on_grid / count,
        "predictions": [
            {
                "displacement": displacement,
                "total": sum((found[index] for found in layers.values()), Shares()).fractions(),
                "layers": {layer: found[index].fractions() for layer, found in layers.items()},
            }
            for index, displacement in enumerate(displacements)
        ],
    }


@dataclass(frozen=True)
class Shares:
    """Weights, and how many of them are expected unchanged by either measure. Several add up."""

    weights: int = 0
    unchanged_bf16: float = 0.0
    within: float = 0.0

    def __add__(self, other: Shares) -> Shares:
        return Shares(
            self.weights + other.weights,
            self.unchanged_bf16 + other.unchanged_bf16,
            self.within + other.within,
        )

    def fractions(self) -> dict[str, float]:
        return {
            "unchanged_bf16": self.unchanged_bf16 / self.weights,
            "within_tolerance": self.within / self.weights,
        }


def distance(weights: StoredTensors, tuned: StoredTensors, name: str) -> Tensor:
    """|w - w0| of one tensor of a pilot, in float32."""
    return (tuned.stored(name).tensor().float() - weights.stored(name).tensor().float()).abs()


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="rlsgd predict-sparsity", description=_DESCRIPTION)
    parser.add_argument("BASE", type=str, help="model folder, hub name, prepared name or file")
    parser.add_argument(
        "--displacement",
        type=float,
        nargs="+",
        required=True,
        help="lengths ||w - w0|| over all weights, as `update/displacement` logs them",
    )
    parser.add_argument(
        "--pilot", type=str, help="checkpoint tuned from BASE, in whose proportions weights move"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-5, help="largest |w - w0| that counts as unchanged"
    )
    parser.add_argument(
        "--round-base", action="store_true", help="round BASE to bfloat16 numbers first"
    )
    parser.add_argument("--json", action="store_true", help="print numbers, not a table")
    return parser


def _table(record: dict[str, Any]) -> Table:
    table = Table(title="expected unchanged, bf16 view [%]")
    table.add_column("layer")
    for prediction in record["predictions"]:
        table.add_column(f"at ||w - w0|| = {prediction['displacement']:g}", justify="right")
    layers = {layer: None for prediction in record["predictions"] for layer in prediction["layers"]}
    for layer in layers:
        cells = [one["layers"][layer]["unchanged_bf16"] for one in record["predictions"]]
        name = "outside" if layer == "None" else layer
        table.add_row(name, *(f"{100 * cell:.2f}" for cell in cells))
    for key, name in (
        ("unchanged_bf16", "total"),
        ("within_tolerance", f"|w - w0| <= {record['tolerance']:g}"),
    ):
        cells = [one["total"][key] for one in record["predictions"]]
        table.add_row(name, *(f"{100 * cell:.2f}" for cell in cells))
    return table
