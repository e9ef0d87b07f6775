"""GRPO and PPO in two FSDP2 processes against one process on the same global batch.

The two differ by rounding alone: each rank sums the losses of half the rows, and the halves are
added afterwards. Over the weights of all cases, after 3 to 6 steps, the largest difference measured
is 2.4e-7, two roundings of a weight near 1; of the metrics it is 5.8e-7 of the value. The bounds
leave a factor of 4 for other machines, and are a thousandth of what the weights move.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.fits import CASES, fit, on_two_ranks

WEIGHTS = 1e-6
METRICS = 2.5e-6  # of 1, and of the value where that is larger
SHARES = {  # sums over the global batch; others are means of each rank's own summary
    *("loss", "entropy", "kl", "value_loss", "reward", "reward_std", "critic/vf_clipfrac"),
    *("grad_norm", "grad_clipped_fraction", "critic/grad_norm", "critic/grad_clipped_fraction"),
    *("learning_rate", "critic/learning_rate", "completions/mean_length"),
}


def all_cases(rank: int, models: dict[str, Path], folder: Path) -> None:
    for name, (_, fixture, _, _) in CASES.items():
        _, _, result = fit(name, models[fixture], folder / name, ranks=2)
        if rank == 0:
            torch.save(result, folder / f"{name}.pt")


@pytest.fixture(scope="module")
def sharded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sharded")
    models = {case[1]: request.getfixturevalue(case[1]) for case in CASES.values()}
    on_two_ranks(all_cases, models, folder)
    return {name: torch.load(folder / f"{name}.pt") for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_weights_and_metrics(name, request, sharded, tmp_path):
    module, _, whole = fit(name, request.getfixturevalue(CASES[name][1]), tmp_path)
    parts = sharded[name]
    assert parts["weights"].keys() == whole["weights"].keys()
    for weight, value in whole["weights"].items():
        assert (value - parts["weights"][weight]).abs().max() < WEIGHTS, weight
    start = type(module)(policy=module.policy_path)
    start.configure_model()
    moved = [
        (value - whole["weights"][f"policy.{weight}"]).abs().max()
        for weight, value in start.policy.named_parameters()
    ]
    assert max(moved) > 1000 * WEIGHTS
    assert len(parts["metrics"]) == len(whole["metrics"]) == 3
    for ours, theirs in zip(parts["metrics"], whole["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        for metric in SHARES & ours.keys():
            assert ours[metric] == pytest.approx(theirs[metric], rel=METRICS, abs=METRICS), metric


def test_the_cases_clip_some_gradients_and_the_ranks_have_other_lengths(sharded):
    metrics = {name: sharded[name]["metrics"] for name in CASES}
    for name in ("grpo", "grpo_by_value", "ppo"):
        assert {epoch["grad_clipped_fraction"] for epoch in metrics[name]} == {1.0}
    assert any(epoch["critic/grad_clipped_fraction"] for epoch in metrics["ppo"])
    assert all(epoch["kl"] for epoch in metrics["ppo"][1:])
    assert any(e["completions/max_length"] % 1 or e["num_tokens"] % 1 for e in metrics["grpo"])
