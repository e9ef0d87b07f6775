"""What `rlsgd validate` and `rlsgd test` say at the end: a table, and a JSON file for later."""

from __future__ import annotations

import json
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from rlsgd.callbacks.base import run_folder
from rlsgd.core.made_with import remembers_arguments

STAGES = {"validation": "val", "test": "test"}
WITHOUT_INTERVAL = ("reward", "mean_length", "truncated_fraction")


@remembers_arguments
class EvaluationReport(Callback):
    """After `validate` and `test`: a table, and `evaluation.json` in the run's folder.

    The command line adds it to both. It says nothing about the validation during `fit`. The file
    has neither time nor place in it: an evaluation that is repeated writes the same bytes.

    Args:
        per_problem: record of every metric of every problem, in the order of the problems.
    """

    def __init__(self, per_problem: bool = False) -> None:
        self.per_problem = per_problem

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report(trainer, pl_module, "validation")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report(trainer, pl_module, "test")

    def report(self, trainer: Trainer, pl_module: Any, split: str) -> None:
        """Write the file and print the table, on the first rank."""
        evaluator = pl_module.evaluator
        if not evaluator.is_full(pl_module):
            return
        record = evaluation_record(trainer, pl_module, split)
        if self.per_problem:
            record["per_problem"] = {
                name: values.reshape(-1).tolist() for name, values in evaluator.values.items()
            }
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(record, indent=2) + "\n"
            (folder / "evaluation.json").write_text(text, encoding="utf-8")
            console = Console()
            console.print(table_of(record))
            # soft_wrap: a path must stay in one piece
            console.print(f"written to {folder / 'evaluation.json'}", soft_wrap=True)


def evaluation_record(trainer: Trainer, module: Any, split: str) -> dict[str, Any]:
    """Everything that a reader needs to believe the numbers, and the numbers."""
    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    metrics = {name: estimate._asdict() for name, estimate in module.evaluator.estimates.items()}
    for name in WITHOUT_INTERVAL:
        metrics[name] = {"value": float(trainer.callback_metrics[f"{STAGES[split]}/{name}"])}
    return {
        "policy": module.policy_path,
        "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        "split": split,
        "problems": module.evaluator.values["accuracy"].numel(),
        "task": settings_of(data.task),
        "reward": settings_of(data.scorer.reward),
        "eval_samples": module.evaluator.num_samples,
        "eval_temperature": module.evaluator.temperature,
        "max_completion_tokens": module.max_completion_tokens,
        "seed": module.seed,
        "val_batch_size": data.val_batch_size,
        "ranks": trainer.world_size,
        "metrics": metrics,
    }


def settings_of(component: object) -> dict[str, Any]:
    """Class and public attributes of a task or a reward, without those that are no plain data."""
    public = {name: value for name, value in vars(component).items() if not name.startswith("_")}
    plain = {name: value for name, value in public.items() if is_plain(value)}
    return {"class": type(component).__name__, **plain}


def is_plain(value: object) -> bool:
    """Whether JSON has a word for it."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def table_of(record: dict[str, Any]) -> Table:
    """One row for each metric."""
    problems = f"{record['problems']} {record['split']} problems of {record['task']['class']}"
    samples = f"{record['eval_samples']} samples at temperature {record['eval_temperature']:g}"
    caption = (
        f"metrics with @: {samples}; the others: greedy" if record["eval_samples"] else "greedy"
    )
    table = Table(title=f"{record['policy']} on {problems}", caption=caption)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="center")
    for name, metric in record["metrics"].items():
        interval = f"{metric['low']:.4f} to {metric['high']:.4f}" if "low" in metric else ""
        table.add_row(name, f"{metric['value']:.4f}", interval)
    return table
