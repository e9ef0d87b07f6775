"""A small real training run whose optimizer does to the weights what a test tells it to."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from rlsgd.core.problems import Problem, Prompt
from rlsgd.core.types import Rollouts, SupervisedBatch, TokenBatch
from rlsgd.models.loading import load_policy, load_tokenizer
from rlsgd.models.scoring import completion_logprobs

Edit = Callable[[PreTrainedModel], Any]


class Scripted(torch.optim.Optimizer):
    """Its n-th step makes the n-th edit, and nothing else."""

    def __init__(self, policy: PreTrainedModel, edits: Sequence[Edit]) -> None:
        super().__init__(policy.parameters(), {})
        self.policy, self.edits = policy, iter(edits)

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        with torch.no_grad():
            next(self.edits)(self.policy)
        return loss


class PolicyStub(LightningModule):
    """What callbacks know of a policy module. Its loss draws random numbers, as sampling does."""

    def __init__(
        self,
        folder: Path,
        optimizer: Callable[[PreTrainedModel], torch.optim.Optimizer],
        *,
        random_weights: bool = False,
        dtype: torch.dtype = torch.float32,
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.starting_folder, self.random_weights = str(folder), random_weights
        self.optimizer, self.policy_dtype, self.frozen = optimizer, dtype, frozen
        self.tokenizer = load_tokenizer(str(folder))
        self.policy: PreTrainedModel

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            self.policy = load_policy(self.starting_folder, random_weights=self.random_weights)
            for name, parameter in self.policy.named_parameters():
                parameter.data = parameter.data.to(self.policy_dtype)  # and not the rotary buffers
                parameter.requires_grad_(name not in self.frozen)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.policy)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        logprobs, _ = completion_logprobs(self.policy, batch, temperature=1.0)
        loss = -(logprobs.sum(1) * torch.rand(len(batch))).mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.log("val/accuracy", 0.25, on_step=False, on_epoch=True)
        return loss

    def predict_step(self, batch: TokenBatch, batch_idx: int) -> TokenBatch:
        return batch


def make_rollouts(
    completions: Sequence[str] = ("4", "7"), rewards: Sequence[float] | None = (1.0, 0.0)
) -> Rollouts | SupervisedBatch:
    """One row for each completion, all with the same ids; texts on record have no rewards."""
    count = len(completions)
    problem = Problem("2+2=", "4")
    fields: dict[str, Any] = dict(
        input_ids=torch.tensor([[4, 12, 4, 14, 6, 1]]).expand(count, -1),
        attention_mask=torch.ones(count, 6, dtype=torch.bool),
        completion_mask=torch.tensor([[False] * 4 + [True] * 2]).expand(count, -1),
        prompts=[Prompt(problem, "2+2=", [4, 12, 4, 14])] * count,
        completions=list(completions),
    )
    if rewards is None:
        return SupervisedBatch(denominator=torch.tensor(2 * count), **fields)
    truncated = torch.arange(count) % 2 == 1
    return Rollouts(truncated=truncated, rewards=torch.tensor(rewards), **fields)


def loader(batches: Sequence[TokenBatch] | int = 2, *, shuffle: bool = True) -> DataLoader:
    batches = [make_rollouts() for _ in range(batches)] if isinstance(batches, int) else batches
    return DataLoader(batches, batch_size=None, shuffle=shuffle)  # pyright: ignore


def make_trainer(
    folder: Path, callbacks: Sequence[Callback], *, epochs: int = 3, **settings: Any
) -> Trainer:
    """On the CPU, logging to CSV and TensorBoard in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    loggers = [
        kind(save_dir=folder, name="", version="") for kind in (TensorBoardLogger, CSVLogger)
    ]
    quiet = {"enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=loggers,
        callbacks=list(callbacks),
        log_every_n_steps=1,
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        **{"devices": 1, **quiet, **settings},
    )


def logged(folder: Path, key: str) -> list[tuple[int, int, float]]:
    """(epoch, step, value) of each time that `key` was written to metrics.csv."""
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(key)]
    return [(int(row["epoch"]), int(row["step"]), float(row[key])) for row in rows]


def values(folder: Path, key: str) -> list[float]:
    return [value for _, _, value in logged(folder, key)]


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(folder: Path) -> EventAccumulator:
    """Everything TensorBoard would show."""
    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()
