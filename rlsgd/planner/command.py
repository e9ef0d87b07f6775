"""`rlsgd memory`: what training takes of memory and network, from a config alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from rlsgd.core.command import run_command
from rlsgd.core.typed_parser import TypedParser
from rlsgd.planner.architecture import load_architecture
from rlsgd.planner.optimizers import measure_optimizer
from rlsgd.planner.report import draw, make_record, print_record
from rlsgd.planner.setup import Setup

_DESCRIPTION = (
    "Plan memory and traffic of a training run by arithmetic, without weights or a GPU: bytes of "
    "every term on one GPU at each moment of an iteration, the fewest GPUs that hold it, and what "
    "goes over the network. Exit status: 0, or 2 if an argument cannot be used."
)
_UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def main(argv: Sequence[str]) -> int:
    """Run `rlsgd memory` on what follows it, and return its exit status."""
    return run_command("memory", argv, _parser(), _run)


def _run(arguments: Any) -> int:
    setup = Setup(**{field.name: getattr(arguments, field.name) for field in fields(Setup)})
    if not 0 <= arguments.changed_share <= 1:
        raise ValueError(f"--changed_share {arguments.changed_share}: must be from 0 to 1")
    gpu_bytes = read_size(arguments.gpu_memory)
    out = None if arguments.out is None else Path(arguments.out)
    if out is not None:
        _make_folder(out)
    weight_item = setup.dtypes.weight
    optimizers = [measure_optimizer(spec, weight_item) for spec in arguments.optimizer]
    record = make_record(
        load_architecture(arguments.model),
        optimizers,
        setup,
        gpu_bytes=gpu_bytes,
        changed_share=arguments.changed_share,
    )
    text = json.dumps(record, indent=2, allow_nan=False)
    if out is not None:
        (out / "memory.json").write_text(text + "\n", encoding="utf-8")
        draw(record, out / "memory.png")
    if arguments.json:
        print(text)
        return 0
    console = Console()
    print_record(console, record)
    if out is not None:
        console.print(f"written: {out / 'memory.json'}, {out / 'memory.png'}", soft_wrap=True)
    return 0


def read_size(text: str) -> float:
    """Bytes of a size such as 80GiB or 141 GB.

    Raises:
        ValueError: it is no number above 0 with a unit.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    if found is None or found[2] not in _UNITS or not float(found[1]) > 0:
        raise ValueError(
            f"--gpu_memory {text}: write a number above 0 and one of {', '.join(_UNITS)}, for "
            "example 80GiB"
        )
    return float(found[1]) * _UNITS[found[2]]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: {error.strerror}; name a folder to write to") from error


def _parser() -> TypedParser:
    parser = TypedParser(prog="rlsgd memory", description=_DESCRIPTION)
    parser.add_argument(
        "--model",
        type=str,
        required=True,
        help="a published config (qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b, llama-3.1-8b, "
        "llama-3.1-70b, smollm2-135m), `embedded`, a folder with config.json, the name of a "
        "prepared model or a hub name",
    )
    parser.add_argument(
        "--optimizer",
        type=str,
        nargs="+",
        default=["torch.optim.AdamW", "torch.optim.SGD"],
        help="one or several, side by side: a class path, a name in torch.optim or "
        "rlsgd.optimizers, or JSON as in a config: "
        '\'{"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}\'',
    )
    parser.add_class_arguments(Setup, nested_key=None)
    parser.add_argument(
        "--gpu_memory", type=str, default="80GiB", help="of one GPU, for the fewest that hold it"
    )
    parser.add_argument(
        "--changed_share",
        type=float,
        default=0.01,
        help="of the sampler's weights that one update changes, for sparse weight "
        "synchronisation: 0.01 is what arXiv:2602.03839 found of AdamW in bfloat16; the callback "
        "StepVisibility measures a run's",
    )
    parser.add_argument("--out", type=str, help="folder for memory.json and memory.png")
    parser.add_argument("--json", action="store_true", help="print memory.json, not tables")
    return parser
