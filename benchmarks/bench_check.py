"""Whether both sides of the benchmark compute the same: loss and gradients of one rollout.

rlsgd samples a rollout and makes its update from it; TRL is given the same token ids, scores their
texts with the same reward, and makes its own. Compared are the loss and the gradient of every
parameter just before the optimizer's step, both in float32 and unclipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

# Two float32 programs that add the same terms in other orders: each of some 10^4 terms of a sum may
# be off by 6e-8 of its size, and what is summed cancels. Measured: 1e-6 to 1e-5.
TOLERANCE = 1e-4


def write_rollout(folder: Path, rollouts: Any) -> None:
    """Token ids of prompts and completions without padding, row by row, with their rewards."""
    mask = rollouts.completion_mask
    record = {
        "prompts": [prompt.token_ids for prompt in rollouts.prompts],
        "completions": [ids[m].tolist() for ids, m in zip(rollouts.input_ids, mask, strict=True)],
        "rewards": rollouts.rewards.tolist(),
        "advantages": rollouts.advantages.tolist(),
    }
    (folder / "rollout.json").write_text(json.dumps(record))


def injected_rollout(folder: Path) -> Callable[..., tuple[list[list[int]], None]]:
    """For GRPOTrainer: generates what was rolled out before, if it is asked the same prompts."""
    record = json.loads((folder / "rollout.json").read_text())

    def generate(prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        if [list(ids) for ids in prompt_ids] != record["prompts"]:
            raise RuntimeError("the two sides do not have the same prompts")
        return record["completions"], None

    return generate


def write_gradients(
    folder: Path, side: str, gradients: Iterable[tuple[str, Tensor | None]]
) -> None:
    """One file for each parameter: a file of all would hold a second copy in memory."""
    target = folder / side
    target.mkdir()
    for name, gradient in gradients:
        if gradient is not None:
            save_file({"gradient": gradient.contiguous()}, target / f"{name}.safetensors")


def read_gradient(path: Path) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor("gradient")


def compare(folder: Path, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """How far the two sides are apart.

    Returns:
        `agree`; the `losses`; `loss_difference`, relative to the mean size of an advantage, since
        the loss is a mean of advantages of both signs; `gradient_difference`, the largest
        ||ours - theirs|| / ||theirs|| of all `parameters`, and `parameter`, where that is.
    """
    losses = {
        side: json.loads((folder / f"{side}.json").read_text())["loss"] for side in ("rlsgd", "trl")
    }
    advantages = torch.tensor(json.loads((folder / "rollout.json").read_text())["advantages"])
    loss_difference = abs(losses["rlsgd"] - losses["trl"]) / float(advantages.abs().mean())
    names = {side: {path.name for path in (folder / side).iterdir()} for side in losses}
    if names["rlsgd"] != names["trl"]:
        raise RuntimeError(f"gradients on one side only: {names['rlsgd'] ^ names['trl']}")
    differences = {}
    for name in sorted(names["trl"]):
        ours, theirs = (read_gradient(folder / side / name) for side in ("rlsgd", "trl"))
        differences[name] = float((ours - theirs).norm() / theirs.norm())
    worst = max(differences, key=lambda name: differences[name])
    return {
        # False where one is not a number
        "agree": all(d <= tolerance for d in (loss_difference, *differences.values())),
        "tolerance": tolerance,
        "losses": losses,
        "loss_difference": loss_difference,
        "gradient_difference": differences[worst],
        "parameter": worst.removesuffix(".safetensors"),
        "parameters": len(differences),
    }
