"""`rlsgd rates`: learning rates of other optimizers, from one short pilot of a config."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsgd.core.command import PlainParser, UsageError, run_command

if TYPE_CHECKING:
    from torch import Tensor

    from rlsgd.cli.pilot import Pilot

DESCRIPTION = """\
Suggest a learning rate for other optimizers than a config's own. A pilot samples and differentiates
a few iterations at the weights that the config starts from, which do not move. Each optimizer is
then given these gradients in a random order, as many as the run has steps up to --steps. Suggested
is the rate at which its steps reduce the loss, to first order, as much as the config's own
optimizer does at its own rate. That has to be a good one, such as an AdamW recipe's. What noise and
curvature allow beyond first order is not measured. Flags of rlsgd fit may follow. Exit status: 0; 2
if a setting is wrong.

    rlsgd rates --config grpo_embedded --model.optimizer torch.optim.AdamW \\
        --model.optimizer.init_args.lr 1e-5
"""
MOST_STEPS = 100
CANDIDATES: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("torch.optim.SGD", {}),
    "SGD, momentum 0.9": ("torch.optim.SGD", {"momentum": 0.9}),
    "SignSGD": ("rlsgd.optimizers.SignSGD", {}),
    "RMSprop": ("torch.optim.RMSprop", {}),
    "AdamW": ("torch.optim.AdamW", {}),
    "Muon with AdamW": ("rlsgd.optimizers.MuonWithAdamW", {}),
}


class RatesParser(PlainParser):
    """Keeps what it does not know, in `fit`, for the parser of `rlsgd fit`."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        own, own.fit = self.parse_known_args(args, namespace)
        return own


def main(argv: Sequence[str]) -> int:
    """Run `rlsgd rates` and return its exit status."""
    parser = RatesParser(
        prog="rlsgd rates",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = "iterations of the pilot, even; default 8"
    parser.add_argument("--pilots", type=int, default=8, help=what)
    parser.add_argument(
        "--steps", type=int, help=f"steps to look ahead; default: the run's, at most {MOST_STEPS}"
    )
    parser.add_argument(
        "--optimizer",
        action="append",
        default=[],
        metavar="CLASS",
        help="further optimizer by its class path, with its own defaults, or a JSON object of "
        "class_path and init_args; may be given again",
    )
    parser.add_argument("--json", metavar="FILE", help="file to write the numbers to")
    return run_command("rates", argv, parser, run)


def run(given: argparse.Namespace) -> None:
    """Pilot, shadows and table."""
    if given.pilots < 4 or given.pilots % 2:
        raise UsageError(
            f"--pilots {given.pilots}: an even number from 4, half to measure the gain"
        )
    if given.steps is not None and given.steps < 1:
        raise UsageError(f"--steps {given.steps}: at least 1")
    sys.path.append(os.getcwd())  # where a class of one's own may be
    from rlsgd.cli.pilot import Pilot
    from rlsgd.planner.optimizers import class_and_arguments

    named = CANDIDATES | {spec: (spec, {}) for spec in given.optimizer}
    candidates = {}
    for name, (spec, options) in named.items():
        kind, more = class_and_arguments(spec)
        candidates[name] = partial(kind, **{"lr": 1e-3} | more | options)
    with tempfile.TemporaryDirectory(prefix="rlsgd-rates-") as folder:
        pilot = Pilot.measure(given.fit, Path(folder), given.pilots)
        record = measure(pilot, candidates, given.steps)
    print("\n".join(lines(record)))
    if given.json:
        Path(given.json).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(
    pilot: Pilot, candidates: dict[str, Callable[..., Any]], steps: int | None
) -> dict[str, Any]:
    """Noise and gains of a pilot, as plain data."""
    import torch

    from rlsgd.functional.first_order import matched_rate, noise_of_products
    from rlsgd.functional.noise_scale import predicted_memory

    files, rows = pilot.keep.files, pilot.keep.rows
    if len(files) < 4:
        raise UsageError(f"--pilots: it made {len(files)} optimizer steps; 4 are needed")
    per_epoch = len(files) / pilot.keep.epochs
    steps = steps or min(MOST_STEPS, round(pilot.max_epochs * per_epoch))
    products = torch.zeros(len(files), len(files), dtype=torch.float64)
    for i, file in enumerate(files):
        gradient = read(file)
        for j in range(i, len(files)):
            products[i, j] = products[j, i] = inner(gradient, read(files[j]))
    noise = noise_of_products(products, rows[0])
    ratio = noise.signal_to_noise(rows[0])
    own = pilot.anchor
    makers = {"own": own, **candidates}
    means = [mean(files[1::2]), mean(files[::2])]
    gains = {}
    for name, make in makers.items():
        print(f"rlsgd: {name}: {steps} steps with each half of the gradients", flush=True)
        gains[name] = gains_of(pilot, make, steps, means)
    optimizer = own([torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2)])
    rate = float(optimizer.param_groups[0]["lr"])
    base = sum(gains["own"])
    return {
        "optimizer": type(optimizer).__name__,
        "rate": rate,
        "clipping": pilot.clipping[0],
        "pilot_steps": len(files),
        "steps": steps,
        "rows": rows[0],
        "gradient_norm": float(products.diagonal().mean().sqrt()),
        "noise_scale": noise.scale,
        "cosine_with_momentum": None if ratio is None else predicted_memory(ratio)[0],
        "rates": {
            name: {
                "rate": matched_rate(rate, base, sum(gain)),
                "halves": [
                    matched_rate(rate, a, b) for a, b in zip(gains["own"], gain, strict=True)
                ],
            }
            for name, gain in gains.items()
            if name != "own"
        },
    }


def gains_of(
    pilot: Pilot, make: Callable[..., Any], steps: int, means: list[dict[str, Tensor]]
) -> list[float]:
    """First-order gain at rate 1, driven by one half of the gradients and measured by the other."""
    from rlsgd.optimizers.shadow import displacement

    model: Any = pilot.model
    parameters = dict(model.policy.named_parameters())
    found = []
    for start, other in enumerate(means):
        order = random.Random(0).choices(pilot.keep.files[start::2], k=steps)
        moved = displacement(make, parameters, map(read, order), clipping(*pilot.clipping))
        found.append(-float(inner(moved, other)))
    return found


def mean(files: Sequence[Path]) -> dict[str, Tensor]:
    """Mean gradient by name; where one has none it counts as 0."""
    total: dict[str, Tensor] = {}
    for file in files:
        for name, gradient in read(file).items():
            total[name] = gradient / len(files) + total.get(name, 0)
    return total


def clipping(value: float | None, algorithm: str) -> Callable[..., Any] | None:
    """Torch's own, as the trainer is asked to clip."""
    import torch

    if not value:
        return None
    by = {"norm": torch.nn.utils.clip_grad_norm_, "value": torch.nn.utils.clip_grad_value_}
    return lambda parameters: by[str(algorithm)](parameters, value)


def read(path: Path) -> dict[str, Tensor]:
    """Gradients of a step by name."""
    from safetensors.torch import load_file

    return load_file(path)


def inner(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """Inner product [] over the tensors that both have, in float64."""
    import torch

    zero = torch.zeros((), dtype=torch.float64)
    products = ((a[n].double().cpu() * b[n].double().cpu()).sum() for n in a.keys() & b.keys())
    return sum(products, zero)


def lines(record: dict[str, Any]) -> Iterator[str]:
    """What is printed."""
    scale, cosine = record["noise_scale"], record["cosine_with_momentum"]
    clipped = f"clipped at {record['clipping']:g}" if record["clipping"] else "not clipped"
    yield (
        f"\ngradients of {record['pilot_steps']} steps of {record['rows']} rows, of root mean "
        f"square norm {record['gradient_norm']:.3g}, {clipped}"
    )
    if scale is None:
        yield "noise scale: no signal was found in the noise; take more --pilots or rows"
    else:
        yield (
            f"noise scale: {scale:.0f} rows; an average of gradients with decay 0.9 would have "
            f"cosine {cosine:.2f} with the next one"
        )
    yield (
        f"rates at which {record['steps']} steps gain, to first order, what "
        f"{record['optimizer']} at {record['rate']:g} does:"
    )
    for name, found in record["rates"].items():
        if found["rate"] is None:
            yield f"  {name:20} none: no gain was found"
            continue
        halves = [half for half in found["halves"] if half is not None]
        spread = f"{min(halves):.2g} to {max(halves):.2g} by halves of the pilot" if halves else ""
        yield f"  {name:20} {found['rate']:.2g}   ({spread})"
    yield "to first order alone: try each with a third and three times of it as well"
