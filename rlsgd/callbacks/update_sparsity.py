"""Update sparsity: which share of the weights has not changed, by which measure, and where.

The displacement ||w - w0|| stands beside it: a small enough update is sparse by any tolerance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from rlsgd.callbacks.base import UpdateCallback, append_jsonl, log_metrics
from rlsgd.callbacks.loggers import log_heatmap
from rlsgd.callbacks.scratch import Scratch
from rlsgd.core.checkpoints import LazyTensors
from rlsgd.core.distributed import full_parameters
from rlsgd.core.layer_kinds import kind_of, layer_of
from rlsgd.functional.updates import SparsityCounts, count_unchanged


class UpdateSparsity(UpdateCallback):
    """Share of unchanged weights since the start, and over the epoch's last optimizer step.

    Four measures, since the number means nothing without one: exactly equal in float32; equal
    after rounding both to bfloat16; |weight - initial| <= tolerance for each tolerance, in float32;
    and the one of arXiv:2602.07729's authors, `torch.isclose` of the bfloat16 difference to 0 at
    1e-5, as `bf16_difference_isclose_1e-5` (its exact zeros as `bf16_difference_zero`). A tied
    weight counts once, a frozen one as unchanged. Beside them
    `displacement` ||w - w0||_2 and `relative_displacement` ||w - w0||_2 / ||w0||_2, summed in
    float64. Logged as `update/...` (whole model), `update_kind/...`, `update_step/...`, a heatmap
    of layers x kinds, and in full, by layer and tensor, in `update_sparsity.jsonl`.

    Args:
        every_n_epochs: cadence; the last epoch is always measured.
        tolerances: absolute tolerances.
        per_step: comparison with the weights before the epoch's last optimizer step, which are
            put on disk for that moment.
        heatmap_every_n: draw the heatmap at every n-th measurement and at the last; 0 is never.
        model: `policy`, or `value` for the critic, whose metrics are `value_update/...`.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        tolerances: Sequence[float] = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4),
        per_step: bool = True,
        heatmap_every_n: int = 10,
        model: str = "policy",
    ) -> None:
        super().__init__(every_n_epochs, model)
        if any(tolerance < 0 for tolerance in tolerances):
            raise ValueError("UpdateSparsity.tolerances must not be negative")
        self.tolerances = tuple(tolerances)
        self.per_step = per_step
        self.heatmap_every_n = heatmap_every_n
        self.measurements = 0
        self.scratch = Scratch()
        self.before_step: LazyTensors | None = None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"measurements": self.measurements}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.measurements = state_dict["measurements"]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # not right before the step: an optimizer may apply gradients during the backward pass
        if self.per_step and trainer.is_last_batch and self.is_due(trainer):
            weights = full_parameters(self.measured(pl_module))
            self.before_step = self.scratch.write(trainer, weights)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer):
            return
        self.measurements += 1
        by_name = self.count(pl_module, self.initial)
        prefix = f"{self.prefix}update"
        metrics = self.metrics(by_name)
        if self.before_step is not None:
            step_total = sum(self.count(pl_module, self.before_step).values(), SparsityCounts())
            metrics |= {f"{prefix}_step/{k}": v for k, v in _measures(step_total).items()}
            self.remove_scratch()
        log_metrics(trainer, metrics)
        total, by_kind = sum(by_name.values(), SparsityCounts()), _grouped(by_name, kind_of)
        layers = _grouped(by_name, lambda name: str(layer_of(name)))
        append_jsonl(
            trainer,
            f"{prefix}_sparsity.jsonl",
            {
                "epoch": trainer.current_epoch,
                "global_step": trainer.global_step,
                "dtype": str(next(self.measured(pl_module).parameters()).dtype),
                "total": _measures(total),
                "kinds": {kind: _measures(counts) for kind, counts in by_kind.items()},
                "layers": {layer: _measures(counts) for layer, counts in layers.items()},
                "tensors": {name: _measures(counts) for name, counts in by_name.items()},
            },
        )
        last = trainer.current_epoch + 1 == trainer.max_epochs
        due = self.heatmap_every_n and (self.measurements % self.heatmap_every_n == 0 or last)
        if due and trainer.is_global_zero:
            shares = {n: counts.fractions()["unchanged_bf16"] for n, counts in by_name.items()}
            log_heatmap(trainer, f"{prefix}/unchanged_bf16_by_layer", shares, (0.0, 1.0))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.remove_scratch()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.remove_scratch()

    def remove_scratch(self) -> None:
        """Delete the weights that were put on disk for the per-step measurement."""
        self.scratch.remove()
        self.before_step = None

    def count(self, pl_module: LightningModule, before: LazyTensors) -> dict[str, SparsityCounts]:
        """Counts for each parameter against the given earlier weights."""
        return self.of_each(
            pl_module,
            before,
            lambda now, then: count_unchanged(now, then, tolerances=self.tolerances).as_numbers(),
        )

    def metrics(self, by_name: dict[str, SparsityCounts]) -> dict[str, float]:
        """What is logged of the whole model and of each kind of layer, by metric."""
        prefix = f"{self.prefix}update"
        total = sum(by_name.values(), SparsityCounts())
        metrics = {f"{prefix}/{key}": value for key, value in _measures(total).items()}
        for kind, counts in _grouped(by_name, kind_of).items():
            measures = _measures(counts)
            for key in ("unchanged_fp32", "unchanged_bf16", "relative_displacement"):
                if key in measures:
                    metrics[f"{prefix}_kind/{kind}/{key}"] = measures[key]
        return metrics


def _measures(counts: SparsityCounts) -> dict[str, float]:
    return counts.fractions() | counts.distances()


def _grouped(by_name: dict[str, SparsityCounts], key) -> dict[str, SparsityCounts]:
    groups: dict[str, SparsityCounts] = defaultdict(SparsityCounts)
    for name, counts in by_name.items():
        groups[key(name)] += counts
    return dict(groups)
