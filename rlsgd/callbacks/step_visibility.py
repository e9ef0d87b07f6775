"""StepVisibility: which weights an optimizer step moves in float32, and which in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from rlsgd.callbacks.base import UpdateCallback, append_jsonl, log_metrics
from rlsgd.callbacks.scratch import Scratch
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.core.distributed import full_parameters
from rlsgd.core.layer_kinds import kind_of
from rlsgd.core.types import DivergedError
from rlsgd.functional.dynamics import quantile_name
from rlsgd.functional.visibility import PathLength, Visibility, visibility


class StepVisibility(UpdateCallback):
    """What k optimizer steps change of the weights as bfloat16 shows them.

    Of all weights, the share whose bfloat16 view changes, the share whose move rounding absorbs,
    and the share that does not move in float32 at all, which sum to 1; besides, the share that
    moves by less than half an ulp, and quantiles over all weights of |dw| over half an ulp
    (functional/visibility.py has the definitions). As `visibility/step_...` for one step,
    `visibility/steps4_...` for 4 steps together, and `visibility/drift_...` against the start.

    The way is held against where it leads: `path_length` is the sum of ||dw||,
    `random_walk_length` the root of the sum of squares, `coherence` is ||w - w0|| over the path.
    All are of the path with one corner every k steps, k the smallest horizon whose windows leave
    no gap (1 unless `every_n_steps` is above 1, then give `horizons` an entry that it divides; the
    file says which k it was). A path with a gap, as resuming may leave, is no longer logged.

    Earlier weights wait on disk, in the run's folder: 4 bytes a weight for each horizon (2 with
    bfloat16 weights), written and read once in every window. The start is read at every
    measurement. Every process of a distributed run keeps a copy.

    Args:
        every_n_steps: cadence, in optimizer steps.
        horizons: the numbers of steps k; windows of k steps end at every multiple of
            `every_n_steps` that is at least k steps after the last one.
        quantiles: quantiles of |dw| over half an ulp, each in (0, 1].
        model: `policy`, or `value` for the critic, whose metrics are `value_visibility/...`.
    """

    def __init__(
        self,
        every_n_steps: int = 1,
        horizons: Sequence[int] = (1, 2, 4, 8),
        quantiles: Sequence[float] = (0.5, 0.9, 0.99, 0.999),
        model: str = "policy",
    ) -> None:
        super().__init__(model=model)
        if every_n_steps < 1:
            raise ValueError("StepVisibility.every_n_steps must be at least 1")
        if not horizons or min(horizons) < 1:
            raise ValueError("StepVisibility.horizons must be numbers of steps, each at least 1")
        if not all(0 < q <= 1 for q in quantiles):
            raise ValueError("StepVisibility.quantiles must each be in (0, 1]")
        self.every_n_steps = every_n_steps
        self.horizons = tuple(sorted(set(horizons)))
        self.quantiles = tuple(quantiles)
        # windows of k steps end at the multiples of its period
        self.periods = {k: -(-k // every_n_steps) * every_n_steps for k in self.horizons}
        self.gapless = next((k for k in self.horizons if self.periods[k] == k), None)
        self.path, self.path_end = PathLength(), 0
        self.scratch = Scratch()
        self.before: dict[int, LazyTensors] = {}
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        path = {"length": self.path.length, "squares": self.path.squares}
        return super().state_dict() | {"path": path, "path_end": self.path_end}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.path, self.path_end = PathLength(**state_dict["path"]), state_dict["path_end"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.step = trainer.global_step
        self.open_windows(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:  # gradients were only accumulated
            return
        self.step = trainer.global_step
        if self.step % self.every_n_steps == 0:
            self.measure(trainer, pl_module)
        self.open_windows(trainer, pl_module)

    def open_windows(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights on disk for every horizon whose window begins after this step."""
        for horizon, period in self.periods.items():
            if (self.step + horizon) % period == 0:
                weights = full_parameters(self.measured(pl_module))
                self.before[horizon] = self.scratch.write(trainer, weights, str(horizon))

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the windows that end with this step, and the drift since the start."""
        record: dict[str, Any] = {"epoch": trainer.current_epoch, "global_step": self.step}
        metrics: dict[str, float] = {}
        for horizon, period in self.periods.items():
            if horizon in self.before and self.step % period == 0:
                moved = self.compare(pl_module, self.before.pop(horizon))
                name = "step" if horizon == 1 else f"steps{horizon}"
                total = sum(moved.values(), Visibility())
                metrics |= self.named(name, total)
                record[name] = self.by_kind(moved)
                if horizon == self.gapless and self.path_end == self.step - horizon:
                    self.path.add(total.length)
                    self.path_end = self.step
        drift = self.compare(pl_module, self.initial)
        total = sum(drift.values(), Visibility())
        metrics |= self.named("drift", total)
        record["drift"] = self.by_kind(drift)
        if self.gapless and self.path_end == self.step:
            way = self.path.summary(total.length)
            metrics |= {f"{self.prefix}visibility/{key}": value for key, value in way.items()}
            record["path"] = {"steps_between_corners": self.gapless, **way}
        log_metrics(trainer, metrics)
        append_jsonl(trainer, f"{self.prefix}step_visibility.jsonl", record)

    def compare(self, pl_module: LightningModule, before: LazyTensors) -> dict[str, Visibility]:
        """By kind of parameter, what became of the given earlier weights."""
        kinds: dict[str, Visibility] = {}
        for name, weight, earlier in self.tensors(pl_module, before):
            if not weight.isfinite().all():
                raise DivergedError.of_weight(name, self.step)
            kind = kind_of(name)
            kinds[kind] = kinds.get(kind, Visibility()) + visibility(weight, earlier)
        return kinds

    def measures(self, moved: Visibility) -> dict[str, float]:
        """The shares, the length of the move, and the quantiles of |dw| over half an ulp."""
        ratios = {f"ratio_{quantile_name(q)}": moved.ratio.quantile(q) for q in self.quantiles}
        return {**moved.fractions(), "length": moved.length, **ratios}

    def named(self, name: str, moved: Visibility) -> dict[str, float]:
        """The same under the names they are logged by."""
        values = self.measures(moved)
        return {f"{self.prefix}visibility/{name}_{key}": value for key, value in values.items()}

    def by_kind(self, moved: dict[str, Visibility]) -> dict[str, dict[str, float]]:
        """The same for each kind of parameter, for the file."""
        return {kind: self.measures(part) for kind, part in moved.items()}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.remove_scratch()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.remove_scratch()

    def remove_scratch(self) -> None:
        """Delete the weights that were put on disk."""
        self.scratch.remove()
        self.before = {}
