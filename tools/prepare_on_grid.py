"""Prepare a model whose weights are bfloat16 numbers, as those of real releases are, in the cache.

    python tools/prepare_on_grid.py [--model embedded]

The embedded model was trained in float32 and lies between bfloat16 numbers. A weight between two is
seen to change in bfloat16 by a shorter move than one on a number, so shares of unchanged weights
are lower than a release's would be. This rounds every weight to the nearest number, stores them in
bfloat16 beside the same config and tokenizer, and changes nothing else. Afterwards:
--model.policy embedded-bf16, with the unrounded --model.policy embedded as its control.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from rlsgd.models.loading import cache_folder, load_policy, load_tokenizer


def prepare(model: str, folder: Path) -> float:
    """Write the rounded model; returns the share of its weights that rounding moved."""
    policy, weights, moved = load_policy(model), 0, 0
    with torch.no_grad():
        for parameter in policy.parameters():
            rounded = parameter.bfloat16()
            weights += parameter.numel()
            moved += int((rounded.float() != parameter).sum())
            parameter.data = rounded
    policy.config.dtype = torch.bfloat16
    policy.save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return moved / weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded", help="the model to round")
    model = parser.parse_args().model
    name = f"{Path(model).name}-bf16"
    moved = prepare(model, cache_folder() / name)
    print(f"ready: --model.policy {name} ({100 * moved:.4f}% of its weights were moved)")


if __name__ == "__main__":
    main()
