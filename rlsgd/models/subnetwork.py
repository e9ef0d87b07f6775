"""Train only the weights that an earlier run changed, or as many others, and leave the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from rlsgd.core.checkpoints import LazyTensors


@dataclass(kw_only=True)
class Subnetwork:
    """The weights whose bfloat16 view differs between the starting policy and a tuned one.

    arXiv:2505.11711 retrains this subnetwork alone. Gradients of all other weights are set to zero
    as soon as they appear, so clipping and every optimizer see the subnetwork only. The masks take
    one byte for each weight.

    Args:
        tuned: model folder or safetensors file of the earlier run, with the same start.
        shuffled: train as many weights of each tensor at other, random places: the control.
        seed: of those places.
    """

    tuned: str
    shuffled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not Path(self.tuned).exists():
            raise ValueError(
                f"--model.subnetwork.tuned {self.tuned} does not exist; it is the folder that "
                "HFExport wrote at the end of the earlier run"
            )

    def restrict(self, policy: nn.Module, base: LazyTensors) -> float:
        """Let gradients reach the subnetwork of `policy` alone; returns its share of the weights.

        Raises:
            ValueError: the tuned model is another model, or the policy is sharded.
        """
        tuned = LazyTensors.open(self.tuned)
        generator = torch.Generator().manual_seed(self.seed)
        trained = total = 0
        for name, parameter in policy.named_parameters():
            if isinstance(parameter, DTensor):
                raise ValueError(
                    "--model.subnetwork does not work on a sharded policy: use a strategy that "
                    "keeps the model whole"
                )
            for model, tensors in (("tuned", tuned), ("starting", base)):
                if name not in tensors or tensors.shape(name) != tuple(parameter.shape):
                    raise ValueError(
                        f"--model.subnetwork.tuned {self.tuned}: the {model} model has no {name} "
                        f"of shape {tuple(parameter.shape)}"
                    )
            mask = base[name].bfloat16() != tuned[name].bfloat16()
            if self.shuffled:
                places = torch.randperm(mask.numel(), generator=generator)
                mask = mask.flatten()[places].view(mask.shape)
            mask_gradient(parameter, mask.to(parameter.device))
            trained, total = trained + int(mask.sum()), total + mask.numel()
        return trained / total


def mask_gradient(parameter: Tensor, mask: Tensor) -> None:
    """Zero the gradient of a parameter wherever `mask` (same shape, bool) is False."""
    parameter.register_hook(lambda gradient: torch.where(mask, gradient, 0))


def require_no_weight_decay(optimizer: Optimizer) -> None:
    """Raise `ValueError` if a frozen weight would be moved by decay, which needs no gradient."""
    if any(group.get("weight_decay") for group in optimizer.param_groups):
        raise ValueError(
            "--model.optimizer.init_args.weight_decay must be 0 with --model.subnetwork: decay "
            "moves the weights outside it too"
        )
