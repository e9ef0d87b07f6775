"""Two ranks of which one has no gradient, then both: they step as if every row were computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from rlsgd.algorithms import GRPO
from rlsgd.data import PromptDataModule
from rlsgd.models.strategy import FSDP2Strategy
from tests.distributed.fits import EarlyLetters, Recorder, Sums, make_trainer, on_two_ranks, weights


class SecondRank(EarlyLetters):
    """All completions of the first rank's questions are as good, and all in the second epoch.

    The questions are 1+0=, 11+1= for the first rank, 102+2=, 4+3= for the second.
    """

    def score(self, completion: str, problem: Any) -> float:
        number = int(problem.question.split("+")[1].rstrip("="))
        in_first_epoch = problem.question in ("102+2=", "4+3=")
        return super().score(completion, problem) if in_first_epoch and number >= 2 else 1.0


def momentum(parameters: Any) -> SGD:
    return SGD(parameters, lr=2.0**-4, momentum=0.9, weight_decay=0.01)


def fits(rank: int, model: Path, folder: Path) -> None:
    """With idle rows left out and without, sharded and by DDP."""
    leaves_out = GRPO.policy_loss_alone
    for strategy in ("fsdp2", "ddp"):
        for switch in (leaves_out, False):
            GRPO.policy_loss_alone = switch  # pyright: ignore[reportAttributeAccessIssue]
            module = GRPO(
                policy=str(model),
                max_completion_tokens=6,
                optimizer=momentum,
                share_prompts=False,
            )
            recorder = Recorder()
            trainer = make_trainer(
                folder,
                ranks=2,
                strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
                max_epochs=2,
                accumulate_grad_batches=8,  # a row each, so that sums are the same
                callbacks=[recorder],
            )
            sizes = {"prompts_per_epoch": 4, "group_size": 4, "val_problems": 0}
            data = PromptDataModule(Sums(), str(model), reward=SecondRank(), **sizes)
            trainer.fit(module, datamodule=data)
            result = {"metrics": recorder.epochs, "weights": weights(module)}
            if rank == 0:
                torch.save(result, folder / f"{strategy}-{switch is not False}.pt")


def test_a_rank_without_gradient_takes_part(tiny_llama: Path, tmp_path: Path) -> None:
    on_two_ranks(fits, tiny_llama, tmp_path)
    for strategy in ("fsdp2", "ddp"):
        found, whole = (torch.load(tmp_path / f"{strategy}-{x}.pt") for x in (True, False))
        assert found["weights"].keys() == whole["weights"].keys()
        assert all(torch.equal(w, whole["weights"][n]) for n, w in found["weights"].items())
        skipped = [metrics.pop("rollout/skipped_fraction") for metrics in found["metrics"]]
        assert 0.5 <= skipped[0] < skipped[1] == 1.0
        for metrics, expected in zip(found["metrics"], whole["metrics"], strict=True):
            assert expected.pop("rollout/skipped_fraction") == 0
            assert metrics.pop("entropy") == pytest.approx(expected.pop("entropy"), rel=1e-5)
            assert metrics == expected
        assert found["metrics"][0]["grad_norm"] > 0 == found["metrics"][1]["grad_norm"]
