"""SignSGD: steps of one size in the direction of the gradient's sign (arXiv:1802.04434)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class SignSGD(Optimizer):
    """p <- p - lr * sign(g) - lr * weight_decay * p, with the old p on the right.

    With momentum g is replaced by m <- momentum * m + (1 - momentum) * g, which starts at 0 (Signum
    in the paper). A weight whose gradient is exactly 0 stays. Without momentum there is no state.

    Args:
        params: parameters or groups of them.
        lr: learning rate: how far every weight moves in one step.
        momentum: decay of the average of gradients, in [0, 1); 0 keeps none.
        weight_decay: decoupled, like AdamW's.
    """

    def __init__(
        self, params: ParamsT, lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        flag = "--model.optimizer.init_args"
        if lr < 0:
            raise ValueError(f"{flag}.lr {lr} must not be negative")
        if not 0 <= momentum < 1:
            raise ValueError(f"{flag}.momentum {momentum} must be at least 0 and below 1")
        if weight_decay < 0:
            raise ValueError(f"{flag}.weight_decay {weight_decay} must not be negative")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            lr = float(group["lr"])
            directions: list[Any] = [p.grad for p in params]
            if group["momentum"]:
                for parameter in params:
                    if not self.state[parameter]:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                buffers = [self.state[parameter]["momentum_buffer"] for parameter in params]
                torch._foreach_lerp_(buffers, directions, 1 - group["momentum"])
                directions = buffers
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            # One by one: foreach would hold the signs of all gradients at once.
            for parameter, direction in zip(params, directions, strict=True):
                parameter.add_(direction.sign(), alpha=-lr)
        return loss

    @staticmethod
    def states_per_weight(group: dict[str, Any]) -> int:
        """Numbers kept for each weight of a group, for the closed form of the memory."""
        return int(group["momentum"] != 0)
