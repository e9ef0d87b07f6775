"""Sample completions where people look: tables in the loggers, and a JSONL file."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from rlsgd.callbacks.base import EveryNEpochs, append_jsonl, run_folder
from rlsgd.callbacks.loggers import Rows, log_table
from rlsgd.core.distributed import gathered
from rlsgd.core.problems import NothingScored
from rlsgd.core.types import Rollouts, SupervisedBatch

COLUMNS = ("prompt", "completion", "answer", "reward")


class CompletionLog(EveryNEpochs):
    """The first completions of each rollout with their rewards, and all predictions.

    The first completions whose verifier failed follow them, with the reasons.

    Args:
        every_n_epochs: cadence.
        count: completions shown.
        max_characters: length of each text in the loggers' tables; the JSONL file has them whole.
    """

    def __init__(self, every_n_epochs: int = 1, count: int = 8, max_characters: int = 2000) -> None:
        super().__init__(every_n_epochs)
        self.count = count
        self.max_characters = max_characters

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        batch = getattr(batch, "rollout", None) or batch
        if batch_idx > 0 or not self.is_due(trainer) or not getattr(batch, "completions", None):
            return
        shown = completion_records(batch)[: self.count]
        known = {
            (record["prompt"], record["completion"]) for record in shown if "failure" in record
        }
        shown += [r for r in first_failures(trainer) if (r["prompt"], r["completion"]) not in known]
        self.write(trainer, shown)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Where no completion could be scored there is no batch, but there are reasons."""
        if isinstance(exception, NothingScored):
            self.write(trainer, first_failures(trainer))

    def write(self, trainer: Trainer, shown: list[dict[str, Any]]) -> None:
        """Append records to the file, and send them to the loggers."""
        place = {"epoch": trainer.current_epoch, "global_step": trainer.global_step}
        records = [{**place, **record} for record in shown]
        append_jsonl(trainer, "completions.jsonl", *records)
        log_table(trainer, "completions", *self.table(records))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if trainer.is_global_zero:  # the predictions of another policy do not belong here
            (folder / "predictions.jsonl").unlink(missing_ok=True)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        append_jsonl(trainer, "predictions.jsonl", *gathered(completion_records(outputs)))

    def table(self, records: list[dict[str, Any]]) -> tuple[list[str], Rows]:
        """Columns and rows, with long texts cut; reasons of failures only where there are any."""
        failed = any(record.get("failure") for record in records)
        columns = [*COLUMNS, "failure"] if failed else [*COLUMNS]
        return columns, [[self.cut(record.get(name)) for name in columns] for record in records]

    def cut(self, cell: Any) -> Any:
        """A text of at most `max_characters`; anything else as it is."""
        if not isinstance(cell, str) or len(cell) <= self.max_characters:
            return cell
        return cell[: self.max_characters] + "..."


def completion_records(batch: Rollouts | SupervisedBatch) -> list[dict[str, Any]]:
    """One plain record for each completion; a text on record has no reward and is not cut off.

    Where the verifier gave no score, `failure` has the reason.
    """
    rewards, truncated, failures = [None] * len(batch), [False] * len(batch), []
    if isinstance(batch, Rollouts):
        rewards, truncated = batch.rewards.tolist(), batch.truncated.tolist()
        failures = batch.failures
    return [
        {
            "prompt": prompt.text,
            "completion": completion,
            "answer": prompt.problem.answer,
            "reward": reward,
            "truncated": cut_off,
            **({"failure": failure} if failure else {}),
        }
        for prompt, completion, reward, cut_off, failure in zip(
            batch.prompts,
            batch.completions,
            rewards,
            truncated,
            failures or [None] * len(batch),
            strict=True,
        )
    ]


def first_failures(trainer: Trainer) -> list[dict[str, Any]]:
    """Records of the rollout's first failures, wherever in it they are."""
    notices = getattr(trainer.datamodule, "notices", None)  # pyright: ignore
    return [] if notices is None else list(notices.failures)
