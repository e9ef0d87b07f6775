"""OptimizerDynamics: what an optimizer sees and remembers, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from rlsgd.callbacks.base import ModelCallback, append_jsonl, log_metrics
from rlsgd.callbacks.dynamics_figures import draw
from rlsgd.callbacks.head_gradient import HeadGradient
from rlsgd.callbacks.optimizer_state import (
    MOMENTUM,
    Dynamics,
    Settings,
    Shadow,
    report,
    second_moment_distributions,
    settings,
    state_of,
    states,
)
from rlsgd.callbacks.scratch import Scratch
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.core.distributed import global_norm, whole
from rlsgd.core.types import DivergedError
from rlsgd.functional.dynamics import SpikeCounter, alignment, by_frequency
from rlsgd.functional.updates import squared_norm
from rlsgd.optimizers.protocol import StepsInBackward


class OptimizerDynamics(ModelCallback):
    """Gradients and optimizer states at the last optimizer step of an epoch, as `dynamics/...`.

    After section 3 of arXiv:2602.07729:
    `history_ratio` ||m|| / ||g|| and `momentum_gradient_cosine`, of the momentum before the step
    and the gradient the step is made with, after clipping. SGD's buffer is a sum of gradients, so
    its ratio is 1 / (1 - momentum) of that of an average. The first step has no momentum yet.
    `sqrt_v_std`, `_mean`, `_cv` (std over mean: gradients of another size leave it alone) and
    quantiles, over all weights, of sqrt(v) after the step.
    `effective_lr_p50` ... of lr / (sqrt(v) + eps). Both are of the raw state, as in the paper;
    `sqrt_v_corrected_...` and `effective_lr_corrected_...` are corrected for the start at 0, as
    the actual step of Adam is.

    After arXiv:2605.17787: `weight_to_gradient` ||w||_F / ||g||_F, `weight_to_momentum`, their
    log10; `head_row_norm_max`, `_median`, `_max_over_median`: gradient norms, before clipping, of
    the head's rows, one for each token, by how often the token was trained in this step. A head
    tied to the embedding is measured without the embedding's gradient (see head_gradient.py).
    `grad_norm_spike_fraction` and `grad_norm_largest_ratio`: of all steps since the start, by the
    norm before clipping against its running median.

    In full by layer, kind and tensor in `optimizer_dynamics.jsonl`. An optimizer without v has no
    sqrt(v); with `shadow` it is that of an Adam which gets the same gradients and moves nothing.
    What has no gradient at the measured step is left out. An optimizer that applies gradients
    during the backward pass leaves none to measure, and is refused. The momentum before the step
    waits on disk.

    Args:
        every_n_epochs: cadence; the last epoch is always measured.
        quantiles: quantiles of sqrt(v) and of effective learning rates, each in (0, 1].
        spike_factor: a gradient norm is a spike above this times the running median.
        spike_window: the median is over this many steps before; the first 5 are not judged.
        shadow: keep Adam's m and v beside any optimizer, measured as `dynamics/shadow_...`. Costs
            8 bytes a weight of memory for the whole run, which the Memory callback sees in
            `peak_rss_bytes` (or on the device); a resumed run starts them anew, with its bias
            correction.
        shadow_betas: decay of m and of v.
        shadow_lr: learning rate of the shadow; 1e-6 is the paper's AdamW.
        shadow_eps: likewise.
        figures_every_n: draw figures at every n-th measurement and at the last; 0 is never.
        model: `policy`, or `value` for the critic, whose metrics are `value_dynamics/...`.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        quantiles: Sequence[float] = (0.01, 0.1, 0.5, 0.9, 0.99),
        spike_factor: float = 3.0,
        spike_window: int = 50,
        shadow: bool = False,
        shadow_betas: tuple[float, float] = (0.9, 0.999),
        shadow_lr: float = 1e-6,
        shadow_eps: float = 1e-8,
        figures_every_n: int = 10,
        model: str = "policy",
    ) -> None:
        super().__init__(every_n_epochs, model)
        if not all(0 < q <= 1 for q in quantiles):
            raise ValueError("OptimizerDynamics.quantiles must each be in (0, 1]")
        if spike_factor <= 1 or spike_window < 5:
            raise ValueError(
                "OptimizerDynamics.spike_factor must be above 1 and spike_window at least 5"
            )
        if not all(0 <= beta < 1 for beta in shadow_betas):
            raise ValueError("OptimizerDynamics.shadow_betas must be in [0, 1)")
        self.quantiles = tuple(quantiles)
        self.spikes = SpikeCounter(spike_factor, spike_window, warmup=5)
        betas = (shadow_betas[0], shadow_betas[1])
        self.shadow = Shadow(Settings(shadow_lr, shadow_eps, betas)) if shadow else None
        self.figures_every_n = figures_every_n
        self.measurements = 0
        self.scratch = Scratch()
        self.momentum_before: LazyTensors | None = None
        self.settings: dict[Tensor, Settings] = {}
        self.rows: tuple[Tensor, Tensor] | None = None
        self.head: HeadGradient | None = None
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        counter = self.spikes
        names = ("judged", "spikes", "largest_ratio")
        counts = {name: getattr(counter, name) for name in names} | {"recent": list(counter.recent)}
        return {"spikes": counts, "measurements": self.measurements}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.measurements = state_dict["measurements"]
        for name, value in state_dict["spikes"].items():
            setattr(self.spikes, name, deque(value) if name == "recent" else value)

    # ---- what is looked at, and when

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(isinstance(optimizer, StepsInBackward) for optimizer in trainer.optimizers):
            raise ValueError(
                "--trainer.callbacks OptimizerDynamics: the optimizer applies gradients during the "
                "backward pass and leaves none to measure; use torch.optim.SGD, whose steps are "
                "the same, or leave the callback out"
            )
        self.step = trainer.global_step
        model = self.measured(pl_module)
        self.head = HeadGradient(model)
        if self.head.tied and trainer.precision == "16-mixed":
            raise ValueError(
                "--trainer.precision 16-mixed: OptimizerDynamics cannot tell the gradient of a "
                "tied head from the embedding's under loss scaling; use bf16-mixed or 32-true"
            )
        if self.shadow:
            size = 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
            rank_zero_info(
                f"OptimizerDynamics: the shadow's m and v take {size / 2**20:.0f} MiB of memory, "
                "which counts in memory/peak_rss_bytes (or on the device)"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.head is not None and self.is_due(trainer):
            self.head.watch()
            self.head.count(batch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        trained = dict(self.trained(self.measured(pl_module)))
        if not trained:
            return
        norm = float(global_norm([p.grad for p in trained.values() if p.grad is not None]))
        if norm < float("inf"):  # otherwise the run stops
            self.spikes.add(norm)
        if not (trainer.is_last_batch and self.is_due(trainer)):
            return
        self.settings = settings(trainer.optimizers)
        self.rows = self.head.row_norms() if self.head is not None else None
        kept = states(trainer.optimizers)
        momenta = (
            (name, whole(momentum))
            for name, parameter in trained.items()
            if (momentum := state_of(kept.get(parameter, {}), MOMENTUM)) is not None
        )
        self.momentum_before = self.scratch.write(trainer, momenta)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:  # gradients were only accumulated
            return
        self.step = trainer.global_step
        if self.momentum_before is not None:
            self.measure(trainer, self.measured(pl_module), self.momentum_before)
            self.remove_scratch()
        elif self.shadow:
            self.shadow.update(p for _, p in self.trained(self.measured(pl_module)))
        if self.head is not None:
            self.head.forget()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.head is not None:
            self.head.stop()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.remove_scratch()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.remove_scratch()

    def remove_scratch(self) -> None:
        """Delete the momentum that was put on disk."""
        self.scratch.remove()
        self.momentum_before = None

    def trained(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that have a gradient now, tied ones once."""
        return ((name, p) for name, p in model.named_parameters() if p.grad is not None)

    # ---- the measurement

    def measure(self, trainer: Trainer, model: nn.Module, before: LazyTensors) -> None:
        """Measure the step that was just made, and log it."""
        self.measurements += 1
        own = self.of_optimizer(trainer, model, before)
        metrics, record = report("", own, self.quantiles)
        if self.shadow:
            shadowed = self.of_shadow(model, self.shadow)
            more, fuller = report("shadow_", shadowed, self.quantiles)
            metrics, record = metrics | more, record | fuller
        if self.spikes.judged:
            metrics["grad_norm_spike_fraction"] = self.spikes.spikes / self.spikes.judged
            metrics["grad_norm_largest_ratio"] = self.spikes.largest_ratio
        if self.rows is not None:
            frequency, norms = self.rows
            largest, middle = float(norms.max()), float(norms.median())
            metrics |= {"head_row_norm_max": largest, "head_row_norm_median": middle}
            if middle:
                metrics["head_row_norm_max_over_median"] = largest / middle
            record["head_rows"] = by_frequency(frequency, norms)
        tag = f"{self.prefix}dynamics"
        log_metrics(trainer, {f"{tag}/{name}": value for name, value in metrics.items()})
        place = {"epoch": trainer.current_epoch, "global_step": self.step}
        append_jsonl(trainer, f"{self.prefix}optimizer_dynamics.jsonl", place | record)
        last = trainer.current_epoch + 1 == trainer.max_epochs
        due = self.figures_every_n and (self.measurements % self.figures_every_n == 0 or last)
        if due and trainer.is_global_zero:
            draw(trainer, tag, own, self.rows)
        self.rows = None

    def of_optimizer(
        self, trainer: Trainer, model: nn.Module, before: LazyTensors
    ) -> dict[str, Dynamics]:
        """By name of the parameter, what the optimizer's own states say."""
        kept, by_name = states(trainer.optimizers), {}
        for name, parameter in self.trained(model):
            if parameter not in self.settings:  # it has a gradient that no optimizer uses
                continue
            earlier = before[name] if name in before.files else None
            state = kept.get(parameter, {})
            by_name[name] = self.dynamics(name, parameter, state, earlier, self.settings[parameter])
        return by_name

    def of_shadow(self, model: nn.Module, shadow: Shadow) -> dict[str, Dynamics]:
        """The same of the shadow, which takes in the step's gradients on the way."""
        by_name = {}
        for name, parameter in self.trained(model):
            earlier = shadow.states.get(parameter, {}).get("exp_avg")
            earlier = None if earlier is None else whole(earlier).clone()
            shadow.update([parameter])
            state = shadow.states[parameter]
            by_name[name] = self.dynamics(name, parameter, state, earlier, shadow.settings)
        return by_name

    def dynamics(
        self,
        name: str,
        parameter: nn.Parameter,
        state: dict[str, Any],
        momentum_before: Tensor | None,
        made_with: Settings,
    ) -> Dynamics:
        """Measurements of one parameter, whose tensors are gathered whole, one at a time."""
        assert parameter.grad is not None
        weight, gradient = whole(parameter), whole(parameter.grad)
        if not (weight.isfinite().all() and gradient.isfinite().all()):
            raise DivergedError.of_weight(name, self.step)
        history = {}
        if momentum_before is not None:
            history["history"] = alignment(momentum_before.to(gradient.device), gradient)
        momentum = state_of(state, MOMENTUM)
        return Dynamics(
            weight=float(squared_norm(weight)),
            gradient=float(squared_norm(gradient)),
            momentum=0.0 if momentum is None else float(squared_norm(whole(momentum))),
            distributions=second_moment_distributions(state, made_with),
            **history,
        )
