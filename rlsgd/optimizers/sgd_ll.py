"""SGD-LL: SGD with momentum and two clips that let the learning rate be large (arXiv:2605.17787).

As in the authors' code, but for one point: they find the head by the name `lm_head`, so that with
tied embeddings no row is clipped; here the tied matrix is the head too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from rlsgd.optimizers.roles import mark_named_head, roles


class SGDLL(Optimizer):
    """For each tensor p with gradient g:

        m <- momentum * m + (1 - momentum) * g            starts at 0, without bias correction
        d <- m, and in the head each row by itself  d_i * min(1, head_row_clip / ||d_i||_2)
        p <- p - lr * d * min(1, update_rms_clip / (lr * rms(d)))

    There is no weight decay. `step_metrics` holds what the last step clipped: the share of the
    head's rows and of the tensors.

    The head (one row for each token of the vocabulary) is the parameter with the role `head`, see
    `rlsgd.optimizers.roles`; rlsgd's modules mark it, and of `model.named_parameters()` it is the
    one named `lm_head`. With tied embeddings that is the embedding matrix, whose gradient is the
    sum of both uses: its rows are clipped as the head's.

    Args:
        params: parameters or groups of them.
        lr: learning rate. The paper has 100 to 300, since the second clip bounds the step.
        momentum: decay of the average of gradients, in [0, 1); 0 keeps it as a copy of the
            gradient.
        head_row_clip: largest L2 norm of a row of the head's averaged gradient; none is off.
        update_rms_clip: largest root mean square of a tensor's step, in units of the weight,
            whatever the learning rate; none is off. The paper has 5e-4, and 2e-4 at 1B weights.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        head_row_clip: float | None = 1e-3,
        update_rms_clip: float | None = 5e-4,
    ) -> None:
        flag = "--model.optimizer.init_args"
        if lr < 0:
            raise ValueError(f"{flag}.lr {lr} must not be negative")
        if not 0 <= momentum < 1:
            raise ValueError(f"{flag}.momentum {momentum} must be at least 0 and below 1")
        for name, clip in (("head_row_clip", head_row_clip), ("update_rms_clip", update_rms_clip)):
            if clip is not None and clip <= 0:
                raise ValueError(f"{flag}.{name} {clip} must be above 0; none turns it off")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "head_row_clip": head_row_clip,
            "update_rms_clip": update_rms_clip,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            if group.get("weight_decay"):  # as transformers' Trainer adds it to its groups
                raise ValueError(
                    f"weight_decay {group['weight_decay']} of a parameter group: SGDLL has none; "
                    "set it to 0"
                )
        mark_named_head(self.param_groups)
        heads = [p for group in self.param_groups for p in group["params"] if "head" in roles(p)]
        if head_row_clip is not None and not heads:
            raise ValueError(
                f"{flag}.head_row_clip {head_row_clip}: none of the parameters is a language model "
                "head. Write `head_row_clip: null` in the config for a model without one (a critic:"
                " --model.value_optimizer), or mark the head by rlsgd.optimizers.roles.mark_roles"
            )
        self.step_metrics: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clipped_rows: list[Tensor] = []
        clipped_tensors: list[Tensor] = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            lr, row_clip = float(group["lr"]), group["head_row_clip"]
            directions = self._averages(params, group["momentum"])
            if row_clip is not None:
                for index in (i for i, p in enumerate(params) if "head" in roles(p)):
                    directions[index], clipped = clip_rows(directions[index], row_clip)
                    clipped_rows.append(clipped)
            scales = [1.0] * len(params)
            if group["update_rms_clip"] is not None:
                sizes = lr * rms(directions)
                clipped = sizes > group["update_rms_clip"]
                clipped_tensors.append(clipped)
                scales = torch.where(clipped, group["update_rms_clip"] / sizes, 1.0).tolist()
            # One by one: foreach would first put a second copy of all scaled directions in memory.
            for parameter, direction, scale in zip(params, directions, scales, strict=True):
                parameter.add_(direction, alpha=-lr * scale)
        clips = {"head_rows_clipped": clipped_rows, "tensors_clipped": clipped_tensors}
        self.step_metrics = {
            f"{name}_fraction": torch.cat(parts).float().mean()
            for name, parts in clips.items()
            if parts
        }
        return loss

    @staticmethod
    def states_per_weight(group: dict[str, Any]) -> int:
        """Numbers kept for each weight of a group, for the closed form of the memory."""
        return 1

    def _averages(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        """Update the averaged gradients and return them, in a new list."""
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in params]
        gradients: list[Any] = [p.grad for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return buffers


def clip_rows(matrix: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """A matrix [V, H] whose rows have an L2 norm of at most `limit`, and which were clipped [V]."""
    norms = torch.linalg.vector_norm(matrix, dim=1, keepdim=True, dtype=norm_dtype(matrix))
    clipped = whole(norms > limit).squeeze(1)
    return matrix * (limit / norms).clamp(max=1.0), clipped


def rms(tensors: list[Tensor]) -> Tensor:
    """Root mean squares [N] of whole tensors, over every rank's shards."""
    dtype = norm_dtype(tensors[0])
    if any(isinstance(tensor, DTensor) for tensor in tensors):  # torch 2.15 has no foreach for them
        norms = [whole(torch.linalg.vector_norm(tensor, dtype=dtype)) for tensor in tensors]
    else:
        norms = torch._foreach_norm(tensors, 2, dtype)
    norms = torch.stack(norms)
    return norms / norms.new_tensor([tensor.numel() for tensor in tensors]).sqrt()


def norm_dtype(tensor: Tensor) -> torch.dtype:
    """At least float32: a sum of squares in bfloat16 has two digits."""
    return torch.promote_types(tensor.dtype, torch.float32)


def whole(tensor: Tensor) -> Tensor:
    """The value of a tensor that may be sharded, or a part of a sum over ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
