"""What a run says of itself: where it is, what the base scores, and at the end what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rlsgd.callbacks import CompletionLog, HFExport
from rlsgd.callbacks.base import exact_metrics
from rlsgd.resume.callback import FOLDER

SCORES = {"val/accuracy": "accuracy", "val/loss": "validation loss"}


def score_of(trainer: Any) -> tuple[str, float] | None:
    """Name and value of the last validation; None where there was none."""
    for key, name in SCORES.items():
        if key in trainer.callback_metrics:
            return name, float(trainer.callback_metrics[key])
    return None


def begin(trainer: Any, folder: Path) -> str:
    """Run folder and the base's score, which a resumed run does not measure again."""
    base = score_of(trainer)
    scored = f"; base {base[0]} {base[1]:.4f}" if base else ""
    return f"run folder: {folder}{scored}"


def end(trainer: Any, module: Any, folder: Path, base: tuple[str, float] | None) -> list[str]:
    """The numbers of the last measurements, and where everything is; only what is there.

    Args:
        trainer: after `fit`.
        module: that was trained.
        folder: the run's.
        base: as `score_of` gave it before training.
    """
    measured, lines = exact_metrics(trainer), []
    if last := score_of(trainer):
        lines.append(f"{last[0]}: {f'{base[1]:.4f} -> ' if base else ''}{last[1]:.4f}")
    dtype = str(next(module.policy.parameters()).dtype).removeprefix("torch.")
    shares = [
        (f"exactly ({dtype})", "update/unchanged_fp32"),
        ("rounded to bfloat16", "update/unchanged_bf16"),
        ("within 1e-5", "update/within_1e-5"),
    ]
    found = [f"{100 * measured[key]:.2f}% {how}" for how, key in shares if key in measured]
    if found:
        lines.append(f"unchanged weights: {', '.join(found)}")
    if (rank := measured.get("update/effective_rank_percent")) is not None:
        mean = measured.get("update/effective_rank")
        lines.append(f"effective rank of the update: {rank:.2f}% of full rank, mean {mean:.1f}")
    if (state := measured.get("memory/optimizer_state_bytes")) is not None:
        weights = measured.get("memory/parameter_bytes", 0)
        times = f", {state / weights:.2f} x the weights" if weights else ""
        lines.append(f"optimizer state: {int(state):,} bytes{times}")
    return [*lines, *places(trainer, folder)]


def places(trainer: Any, folder: Path) -> list[str]:
    """Where config, metrics, TensorBoard's logs, completions, checkpoints and export lie."""
    found = {"config": folder / "config.yaml"}
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            found["metrics"] = Path(logger.log_dir) / "metrics.csv"
        elif isinstance(logger, TensorBoardLogger):
            found["TensorBoard"] = Path(logger.log_dir)
    for callback in trainer.callbacks:
        if isinstance(callback, HFExport):
            found["export"] = Path(callback.folder) if callback.folder else folder / "hf"
        elif isinstance(callback, Checkpoint):
            found["checkpoints"] = Path(getattr(callback, "dirpath", None) or folder / FOLDER)
        elif isinstance(callback, CompletionLog):
            found["completions"] = folder / "completions.jsonl"
    lines = [f"{what}: {path}" for what, path in found.items() if path.exists()]
    if "TensorBoard" in found:
        lines.append(f"to look at it: tensorboard --logdir {found['TensorBoard']}")
    return lines


def predicted(folder: Path) -> str:
    """What `predict` wrote, and where."""
    path = folder / "predictions.jsonl"
    if not path.exists():
        return f"nothing was predicted: there is no {path}"
    with path.open(encoding="utf-8") as file:
        return f"written: {sum(1 for _ in file):,} completions to {path}"
