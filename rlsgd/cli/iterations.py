"""Whole iterations: settings that would train on a part of one are refused, and both are counted.

The loss of every microbatch is its share of a whole minibatch, so one that is left out, or an
optimizer step that comes early, is another gradient.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

from rlsgd.algorithms import RLModule


def check_trainer_settings(settings: Any) -> None:
    """Refuse values that Lightning takes for nothing to do, or for something else.

    Args:
        settings: the parsed `trainer` namespace.

    Raises:
        ValueError: names the flag.
    """
    accumulate = settings.accumulate_grad_batches
    if isinstance(accumulate, int) and accumulate < 1:
        raise ValueError(
            f"--trainer.accumulate_grad_batches {accumulate}: must be at least 1, the microbatches "
            "of an optimizer step"
        )
    for flag in ("max_epochs", "max_steps"):
        value = settings.get(flag)
        if isinstance(value, int) and value < -1:
            raise ValueError(f"--trainer.{flag} {value}: must be at least 0, or -1 for no limit")
    for flag in ("min_epochs", "min_steps"):
        least, most = settings.get(flag), settings.get(flag.replace("min", "max"))
        if least is not None and least < 0:
            raise ValueError(f"--trainer.{flag} {least}: must be at least 0")
        if least is not None and most is not None and 0 <= most < least:
            raise ValueError(
                f"--trainer.{flag} {least}: is more than --trainer.{flag.replace('min', 'max')} "
                f"{most}, which ends the run; lower the one or raise the other"
            )
    for flag, least in {"check_val_every_n_epoch": 1, "log_every_n_steps": 0}.items():
        value = settings.get(flag)
        if value is not None and value < least:
            raise ValueError(f"--trainer.{flag} {value}: must be at least {least}")
    clip = settings.get("gradient_clip_val")
    if clip is not None and not clip >= 0:
        raise ValueError(
            f"--trainer.gradient_clip_val {clip}: must not be negative; leave it out to clip "
            "nothing"
        )


def check_iterations(trainer: Any, model: LightningModule, data: Any) -> None:
    """Refuse settings that end an optimizer step, or an iteration, before all of it was trained on.

    In RL an epoch is one rollout and must be whole. Supervised batches are cut from a stream: fewer
    of them are fine if every optimizer step has as many as it counts on.

    Raises:
        ValueError: names the flag, the numbers and the fix.
    """
    if trainer.fast_dev_run:
        return
    accumulate = trainer.accumulate_grad_batches
    steps = model.inner_epochs * model.minibatches if isinstance(model, RLModule) else None
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            _check_schedule(callback.scheduling, accumulate)
        elif isinstance(callback, Timer) and steps is not None:
            callback._interval = "epoch"  # when its time is over the iteration is finished first
    batches = getattr(data, "batches_per_epoch", None) if steps is None else steps * accumulate
    if batches is not None:  # not of data of somebody's own
        _check_limit(trainer, batches, accumulate, is_rl=steps is not None)
    for flag in ("max_steps", "min_steps") if steps is not None else ():
        value = getattr(trainer, flag)
        if steps and value is not None and value > 0 and value % steps:
            before = value // steps * steps
            fitting = f"{before} or {before + steps}" if before else str(steps)
            raise ValueError(
                f"--trainer.{flag} {value}: lies inside an iteration, which has {steps} optimizer "
                f"steps (--model.inner_epochs x --model.minibatches); use {fitting}, or "
                "--trainer.max_epochs"
            )


def _check_limit(trainer: Any, batches: int, accumulate: int, *, is_rl: bool) -> None:
    # overfit_batches sets the other to the same number
    flag = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"
    limit = getattr(trainer, flag)
    kept = int(batches * limit) if isinstance(limit, float) else min(limit or 0, batches)
    if not kept:
        raise ValueError(
            f"--trainer.{flag} {limit}: leaves nothing to train on; leave it out, or use "
            "rlsgd validate"
        )
    if is_rl and kept < batches:
        raise ValueError(
            f"--trainer.{flag} {limit}: an iteration has {batches} microbatches, and training on "
            f"{kept} of them is another gradient. Leave it out; for smaller iterations lower "
            "--data.prompts_per_epoch"
        )
    if kept % accumulate:
        raise ValueError(
            f"--trainer.{flag} {limit}: {kept} batches are no whole number of optimizer steps of "
            f"--trainer.accumulate_grad_batches {accumulate}; use a multiple of it"
        )


def _check_schedule(scheduling: dict[int, int], accumulate: int) -> None:
    if set(scheduling.values()) - {accumulate}:
        raise ValueError(
            f"--trainer.callbacks: GradientAccumulationScheduler {scheduling} changes how many "
            "microbatches a minibatch is split into after the data has counted them, which is "
            "another gradient; use --trainer.accumulate_grad_batches N for the whole run"
        )


def require_whole_iteration(path: str, checkpoint: dict[str, Any]) -> None:
    """Refuse to go on from inside an epoch: the rest of it would be skipped.

    Raises:
        ValueError: names the checkpoint.
    """
    loop = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    if not loop.get("is_last_batch", True) and loop["current"]["completed"]:
        raise ValueError(
            f"--ckpt_path {path}: was saved inside an epoch, after {loop['current']['completed']} "
            "of its batches (--trainer.max_steps or a callback ended it there), and going on would "
            "skip the others; use an earlier checkpoint of the run, or begin anew"
        )


class IterationCount(Callback):
    """Stops an RL run whose iteration trained on fewer or more microbatches than its rollout has.

    The command line adds it. It finds whatever way nobody thought of: a callback that stops inside
    an epoch, a limit on batches, a split that changed.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.steps = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches, self.steps = 0, trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.batches += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run or not isinstance(pl_module, RLModule):
            return
        steps = pl_module.inner_epochs * pl_module.minibatches
        batches = steps * trainer.accumulate_grad_batches
        trained, stepped = self.batches, trainer.global_step - self.steps
        if (trained, stepped) != (batches, steps):
            raise ValueError(
                f"--trainer: iteration {trainer.current_epoch} trained on {trained} microbatches "
                f"in {stepped} optimizer steps, and its rollout has {batches} in {steps}: "
                "something ended it early or split it anew (a callback that stops inside an epoch, "
                "or a limit on batches). Nothing of it was saved; remove that setting"
            )
