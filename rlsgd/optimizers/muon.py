"""Muon for a whole language model: torch's Muon takes matrices alone, AdamW takes what is left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon

from rlsgd.optimizers.container import OptimizerContainer
from rlsgd.optimizers.roles import roles


class MuonWithAdamW(OptimizerContainer):
    """torch.optim.Muon for the layers' matrices and torch.optim.AdamW for everything else.

    Everything else is what Muon is not made for: embeddings and the head (see
    `rlsgd.optimizers.roles`), norms and biases, and a matrix of one row or column, which is a
    vector. Muon keeps one number for each weight, AdamW two.

    Args:
        params: parameters, not groups of them.
        lr: learning rate of both, unless AdamW has its own.
        adamw_lr: AdamW's learning rate; none means `lr`, which suits `match_rms_adamw`.
        weight_decay: weight decay of both, decoupled.
        momentum: Muon's decay of the average of gradients.
        nesterov: Muon's look ahead along that average.
        adjust_lr_fn: dependence of Muon's step on the shape [A, B]: `match_rms_adamw` is 0.2
            sqrt(max(A, B)), the size of a step of AdamW (arXiv:2502.16982); `original` is
            sqrt(max(1, A / B)).
        betas: AdamW's decays.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        adamw_lr: float | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        parameters = list(params)
        matrices = [p for p in parameters if is_layer_matrix(p)]
        others = [p for p in parameters if not is_layer_matrix(p)]
        if not matrices or not others:
            raise ValueError(
                f"--model.optimizer MuonWithAdamW: {len(matrices)} of {len(parameters)} parameters "
                "are matrices of layers; it needs some that are and some that are not. Use "
                "torch.optim.Muon or torch.optim.AdamW alone"
            )
        muon = MuonOfExperts(
            matrices,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            adjust_lr_fn=adjust_lr_fn,
        )
        adamw_lr = lr if adamw_lr is None else adamw_lr
        adamw = AdamW(others, lr=adamw_lr, weight_decay=weight_decay, betas=betas)
        super().__init__([muon, adamw])


class MuonOfExperts(Muon):
    """torch's Muon, with a step for every expert of a tensor [E, m, n]."""

    def __init__(self, matrices: list[Tensor], **options: Any) -> None:
        experts = [p for p in matrices if p.ndim == 3]
        if any(isinstance(p, DTensor) for p in experts):
            raise ValueError(
                "--model.optimizer MuonWithAdamW: experts in one tensor cannot be sharded with "
                "Muon; use one device or DDP"
            )
        # torch refuses three dimensions when it is made, and meets matrices alone when it steps
        first = [p for p in matrices if p.ndim == 2] or [torch.nn.Parameter(torch.zeros(2, 2))]
        super().__init__(first, **options)
        self.param_groups[0]["params"] = matrices

    @staticmethod
    def states_per_weight(group: dict[str, Any]) -> int:
        """Numbers kept for each weight of a group: the average of gradients."""
        return 1

    def _init_group(self, group: Any, *lists: list[Tensor]) -> bool:
        has_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = [m for t in tensors for m in (t if t.ndim == 3 else [t])]
        return has_complex


def is_layer_matrix(parameter: Tensor) -> bool:
    """Whether Muon is made for this parameter: a matrix, or those of a layer's experts."""
    is_matrix = parameter.ndim in (2, 3) and min(parameter.shape[-2:]) > 1
    return is_matrix and not roles(parameter)
