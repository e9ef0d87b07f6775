"""NoiseScale: how noisy the gradient of a step is, and what momentum could remember of it."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from rlsgd.callbacks.base import ModelCallback, append_jsonl, log_metrics
from rlsgd.core.layer_kinds import kind_of
from rlsgd.core.types import Microbatch
from rlsgd.functional.dynamics import Alignment, alignment
from rlsgd.functional.noise_scale import GradientNoise, gradient_noise, predicted_memory
from rlsgd.functional.updates import squared_norm
from rlsgd.optimizers.protocol import StepsInBackward


class NoiseScale(ModelCallback):
    """Noise scale of the gradient at the last optimizer step of an epoch, as `noise/...`.

    `trace` tr(S) and `squared_mean` ||mu||^2 of one row's gradient, unbiased, from the differences
    between the microbatches of a step before clipping; `scale` B = tr(S) / ||mu||^2 in rows, of the
    sums over the last `window` measured steps; `rows` of a step, and `signal_to_noise` rows / B.
    `cosine` and `history_ratio` are those of the step's gradient and an average of the gradients
    before it, `cosine_predicted` and `history_ratio_predicted` what they should be at that ratio
    (functional/noise_scale.py has the law). `noise_kind/KIND/scale` for each kind of parameter; all
    of it for each measured step, in full, in `noise_scale.jsonl`. A scale is left out where no
    signal was found in the noise.

    Costs: a copy of the gradients for the whole run (the average) and another during a measured
    step (to tell a microbatch's part), 4 bytes a weight each; a pass over the gradients in every
    step, and one for each microbatch of a measured step. A resumed run averages anew.

    Args:
        every_n_epochs: cadence; the last epoch is always measured.
        window: measured steps whose sums make `scale`; one step alone is noisy.
        decay: decay of the average, as an optimizer's momentum or first beta.
        model: `policy`, or `value` for the critic, whose metrics are `value_noise/...`.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        window: int = 10,
        decay: float = 0.9,
        model: str = "policy",
    ) -> None:
        super().__init__(every_n_epochs, model)
        if window < 1:
            raise ValueError("NoiseScale.window must be at least 1")
        if not 0 <= decay < 1:
            raise ValueError("NoiseScale.decay must be in [0, 1)")
        self.decay = decay
        self.recent: deque[GradientNoise] = deque(maxlen=window)
        self.average: dict[str, Tensor] = {}
        self.averaged = 0
        self.start_step()

    def start_step(self) -> None:
        """Forget the microbatches of the step before."""
        self.rows: list[int] = []
        self.parts: list[dict[str, float]] = []
        self.before: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = "--trainer.callbacks NoiseScale"
        if trainer.accumulate_grad_batches < 2:
            raise ValueError(
                f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}: NoiseScale "
                "compares the microbatches of a step; set it to 2 or more, better 8"
            )
        if trainer.world_size > 1:
            raise ValueError(f"{name}: measures on one process; set --trainer.devices 1")
        if trainer.precision == "16-mixed":
            raise ValueError(f"{name}: not under loss scaling; use --trainer.precision bf16-mixed")
        if any(isinstance(optimizer, StepsInBackward) for optimizer in trainer.optimizers):
            raise ValueError(
                f"{name}: the optimizer applies gradients during the backward pass and leaves none "
                "to measure; use torch.optim.SGD, whose steps are the same"
            )
        self.start_step()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.rows.append(rows_of(batch))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer):
            return
        part = {}
        for name, gradient in gradients(self.measured(pl_module)):
            seen = self.before.get(name)
            part[name] = float(squared_norm(gradient if seen is None else gradient - seen))
            self.before[name] = gradient.clone()
        self.parts.append(part)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        model = self.measured(pl_module)
        if len(self.parts) > 1 and trainer.is_last_batch:
            self.measure(trainer, model)
        self.start_step()
        self.averaged += 1
        for name, gradient in gradients(model):
            average = self.average.setdefault(name, torch.zeros_like(gradient))
            average.lerp_(gradient, 1 - self.decay)

    def measure(self, trainer: Trainer, model: nn.Module) -> None:
        """Measure the step whose gradient is complete, and log it."""
        by_name, history = {}, Alignment()
        for name, gradient in gradients(model):
            parts = [part.get(name, 0.0) for part in self.parts]
            by_name[name] = gradient_noise(parts, self.rows, float(squared_norm(gradient)))
            if name in self.average:
                history += alignment(self.average[name], gradient)
        total = sum(by_name.values(), GradientNoise())
        self.recent.append(total)
        recent = sum(self.recent, GradientNoise())
        rows = sum(self.rows)
        metrics: dict[str, float | None] = {
            "rows": float(rows),
            "trace": total.trace,
            "squared_mean": total.squared_mean,
            "scale": recent.scale,
            "signal_to_noise": (ratio := recent.signal_to_noise(rows)),
        }
        if self.averaged and history.momentum and history.gradient:
            start = 1 - self.decay**self.averaged  # the average's own start at 0
            measured = history.summary()
            metrics["cosine"] = measured["momentum_gradient_cosine"]
            metrics["history_ratio"] = measured["history_ratio"] / start
            if ratio is not None:
                expected = predicted_memory(ratio, decay=self.decay, steps=self.averaged)
                metrics["cosine_predicted"], metrics["history_ratio_predicted"] = expected
        kinds: dict[str, GradientNoise] = defaultdict(GradientNoise)
        for name, noise in by_name.items():
            kinds[kind_of(name)] += noise
        named = {f"noise/{name}": value for name, value in metrics.items()}
        named |= {f"noise_kind/{kind}/scale": noise.scale for kind, noise in kinds.items()}
        found = {f"{self.prefix}{key}": value for key, value in named.items() if value is not None}
        log_metrics(trainer, found)
        place = {"epoch": trainer.current_epoch, "global_step": trainer.global_step}
        record = {"total": metrics, "kinds": {k: vars(noise) for k, noise in kinds.items()}}
        append_jsonl(trainer, f"{self.prefix}noise_scale.jsonl", place | record)


def rows_of(batch: Any) -> int:
    """Rows of a microbatch, with those left out of it: they have a gradient too, which is 0."""
    return sum(map(len, batch.with_left_out() if isinstance(batch, Microbatch) else [batch]))


def gradients(model: nn.Module):
    """Name and gradient of every parameter that has one, tied ones once."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad.detach()
