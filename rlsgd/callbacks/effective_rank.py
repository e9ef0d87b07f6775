"""Effective rank of the weight update, as arXiv:2602.07729 defines it."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlsgd.callbacks.base import UpdateCallback, append_jsonl, log_metrics
from rlsgd.callbacks.heatmap import log_heatmap
from rlsgd.distributed import gathered, process_number
from rlsgd.functional.updates import effective_rank, squared_spectrum, stable_rank
from rlsgd.layer_kinds import kind_of
from rlsgd.types import DivergedError


class EffectiveRank(UpdateCallback):
    """Rank of every 2-D update since the start: exact, averaged over matrices.

    `update/effective_rank` is the smallest count of singular values that holds `energy` of the
    squared spectrum; `update/effective_rank_percent` is that count as percent of min(m, n);
    `update/stable_rank` is the squared Frobenius norm over the squared largest singular value. A
    zero update has rank 0. In full in `effective_rank.jsonl`.

    Args:
        every_n_epochs: cadence; the last epoch is always measured.
        energy: share of the squared spectrum, in (0, 1].
        heatmap: draw percent of full rank, layers x kinds, after the last epoch.
        model: `policy`, or `value` for the critic, whose metrics are `value_update/...`.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        energy: float = 0.99,
        heatmap: bool = True,
        model: str = "policy",
    ) -> None:
        super().__init__(every_n_epochs, model)
        if not 0 < energy <= 1:
            raise ValueError("EffectiveRank.energy must be in (0, 1]")
        self.energy = energy
        self.heatmap = heatmap

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer):
            return
        ranks = self.ranks(pl_module)
        if not ranks:
            return
        metrics = {
            f"{self.prefix}update/{key}": fmean(rank[key] for rank in ranks.values())
            for key in ("effective_rank", "effective_rank_percent", "stable_rank")
        }
        by_kind: dict[str, list[float]] = defaultdict(list)
        for name, rank in ranks.items():
            by_kind[kind_of(name)].append(rank["effective_rank_percent"])
        for kind, percents in by_kind.items():
            metrics[f"{self.prefix}update_kind/{kind}/effective_rank_percent"] = fmean(percents)
        log_metrics(trainer, metrics)
        record = {"epoch": trainer.current_epoch, "global_step": trainer.global_step}
        append_jsonl(trainer, f"{self.prefix}effective_rank.jsonl", {**record, "tensors": ranks})
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if self.heatmap and last and trainer.is_global_zero:
            percents = {name: rank["effective_rank_percent"] for name, rank in ranks.items()}
            tag = f"{self.prefix}update/effective_rank_percent_by_layer"
            log_heatmap(trainer, tag, percents, (0.0, 100.0))

    def ranks(self, pl_module: LightningModule) -> dict[str, dict[str, float]]:
        """Effective rank, percent and stable rank of each 2-D parameter's update.

        Every process holds each matrix when its turn comes and computes the spectrum of every n-th.
        """
        process, processes = process_number()
        own = []
        matrices = (t for t in self.tensors(pl_module, self.initial) if t[1].ndim == 2)
        for index, (name, weight, initial) in enumerate(matrices):
            if index % processes == process:
                own.append((index, name, self.rank_of(weight - initial)))
        ranks = {name: rank for _, name, rank in sorted(gathered(own), key=lambda item: item[0])}
        broken = next((name for name, rank in ranks.items() if rank is None), None)
        if broken is not None:
            raise DivergedError(
                f"{broken} is no longer finite after optimizer step {pl_module.global_step}. "
                "Lower --model.optimizer.init_args.lr or set --trainer.gradient_clip_val"
            )
        return ranks

    def rank_of(self, update: Tensor) -> dict[str, float] | None:
        """The three numbers of one update [m, n]; none if it is not finite."""
        if not update.isfinite().all():
            return None
        spectrum = squared_spectrum(update)
        rank = effective_rank(spectrum, energy=self.energy)
        return {
            "effective_rank": rank,
            "effective_rank_percent": 100 * rank / min(update.shape),
            "stable_rank": float(stable_rank(spectrum)),
        }
