"""Effective rank of the weight update, as arXiv:2602.07729 defines it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from statistics import fmean

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from rlsgd.callbacks.base import UpdateCallback, append_jsonl, log_metrics
from rlsgd.callbacks.loggers import log_heatmap
from rlsgd.core.layer_kinds import kind_of
from rlsgd.core.matrices import holds_experts
from rlsgd.core.types import DivergedError
from rlsgd.functional.sketched_rank import COLUMNS, sketched_rank
from rlsgd.functional.updates import (
    effective_rank,
    spectrum_for_rank,
    squared_norm,
    stable_rank,
)


class EffectiveRank(UpdateCallback):
    """Rank of every matrix's update since the start, averaged over matrices: the SVD's own count.

    Experts that share a tensor are matrices each, as in a checkpoint. The share of the weights that
    the matrices hold is said, and stands in the file as `covers`.

    `update/effective_rank` is the smallest count of singular values that holds `energy` of the
    squared spectrum; `update/effective_rank_percent` is that count as percent of min(m, n);
    `update/stable_rank` is the squared Frobenius norm over the squared largest singular value. A
    zero update has rank 0. In full in `effective_rank.jsonl`.

    A sketched matrix has bounds instead, `effective_rank_low` and `effective_rank_high`, that
    enclose the count for certain, and `energy_outside_sketch`, on which their distance depends
    (`functional/sketched_rank.py`). Where some are sketched, `update/effective_rank_low` and
    `_high` average over all matrices, exact ones having both alike, and the exact means are left
    out. Bounds are close where the update's rank is well below `sketch_columns`.

    Args:
        every_n_epochs: cadence; the last epoch is always measured.
        energy: share of the squared spectrum, in (0, 1].
        heatmap: draw percent of full rank, layers x kinds, after the last epoch.
        model: `policy`, or `value` for the critic, whose metrics are `value_update/...`.
        sketch_above: sketch matrices whose shorter side is above this; null sketches none.
        sketch_columns: dimension of the sketched subspace.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        energy: float = 0.99,
        heatmap: bool = True,
        model: str = "policy",
        sketch_above: int | None = None,
        sketch_columns: int = COLUMNS,
    ) -> None:
        super().__init__(every_n_epochs, model)
        if not 0 < energy <= 1:
            raise ValueError("EffectiveRank.energy must be in (0, 1]")
        if sketch_above is not None and sketch_above < 1:
            raise ValueError("EffectiveRank.sketch_above must be at least 1, or null")
        if sketch_columns < 1:
            raise ValueError("EffectiveRank.sketch_columns must be at least 1")
        self.energy = energy
        self.sketch_above = sketch_above
        self.sketch_columns = sketch_columns
        self.heatmap = heatmap

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer):
            return
        ranks = self.ranks(pl_module)
        if not ranks:
            return
        prefix = f"{self.prefix}update"
        log_metrics(trainer, self.metrics(ranks))
        covers = self.covers(pl_module)
        rank_zero_info(
            f"{self.prefix}effective rank: {len(ranks)} matrices, {covers:.2%} of the weights"
        )
        record: dict[str, float] = {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
        }
        record["covers"] = covers
        append_jsonl(trainer, f"{self.prefix}effective_rank.jsonl", {**record, "tensors": ranks})
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if self.heatmap and last and trainer.is_global_zero:
            key = "effective_rank_percent"
            percents = {name: rank[key] for name, rank in ranks.items() if key in rank}
            if percents:
                log_heatmap(trainer, f"{prefix}/{key}_by_layer", percents, (0.0, 100.0))

    def covers(self, pl_module: LightningModule) -> float:
        """Share of the model's weights that are in matrices."""
        sizes = [
            (p.numel(), p.ndim == 2 or holds_experts(name, p))
            for name, p in self.measured(pl_module).named_parameters()
        ]
        return sum(size for size, is_in in sizes if is_in) / sum(size for size, _ in sizes)

    def ranks(self, pl_module: LightningModule) -> dict[str, dict[str, float]]:
        """What is known of the rank of each 2-D parameter's update."""
        ranks = self.of_each(
            pl_module, self.initial, lambda now, then: self.rank_of(now - then), matrices=True
        )
        broken = next((name for name, rank in ranks.items() if rank is None), None)
        if broken is not None:
            raise DivergedError.of_weight(broken, pl_module.global_step)
        return {name: rank for name, rank in ranks.items() if rank is not None}

    def metrics(self, ranks: dict[str, dict[str, float]]) -> dict[str, float]:
        """What is logged of all matrices and of each kind of layer, by metric."""
        by_kind: dict[str, list[dict[str, float]]] = defaultdict(list)
        for name, rank in ranks.items():
            by_kind[kind_of(name)].append(rank)
        prefix = f"{self.prefix}update"
        metrics = {f"{prefix}/{key}": mean for key, mean in _means(ranks.values()).items()}
        for kind, of_kind in by_kind.items():
            means = _means(of_kind)
            if "effective_rank_percent" in means:
                metrics[f"{prefix}_kind/{kind}/effective_rank_percent"] = means[
                    "effective_rank_percent"
                ]
        return metrics

    def rank_of(self, update: Tensor) -> dict[str, float] | None:
        """The numbers of one update [m, n]; none if it is not finite."""
        size = float(squared_norm(update))
        if not math.isfinite(size):
            return None
        if self.sketch_above is not None and min(update.shape) > self.sketch_above:
            bounds = sketched_rank(update, energy=self.energy, columns=self.sketch_columns)
            return {
                "effective_rank_low": bounds.low,
                "effective_rank_high": bounds.high,
                "energy_outside_sketch": bounds.outside,
            }
        # without a change there is nothing to decompose
        spectrum = spectrum_for_rank(update, energy=self.energy) if size else update.new_zeros(0)
        rank = effective_rank(spectrum, energy=self.energy)
        exact = {
            "effective_rank": rank,
            "effective_rank_percent": 100 * rank / min(update.shape),
            "stable_rank": stable_rank(spectrum),
        }
        if self.sketch_above is not None:
            exact |= {"effective_rank_low": rank, "effective_rank_high": rank}
        return exact


def _means(ranks: Collection[dict[str, float]]) -> dict[str, float]:
    """The mean of each number that all of them have."""
    shared = set.intersection(*(set(rank) for rank in ranks))
    keys = [key for key in next(iter(ranks)) if key in shared]
    return {key: fmean(rank[key] for rank in ranks) for key in keys}
