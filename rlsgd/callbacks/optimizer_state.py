"""What the states of an optimizer mean, whatever its class calls them, and what they sum up to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlsgd.core.distributed import whole
from rlsgd.core.layer_kinds import kind_of, layer_of
from rlsgd.functional.dynamics import Alignment, Distribution, distribution, effective_lr

MOMENTUM, SECOND_MOMENT = "momentum", "second_moment"
# state key -> meaning. SGD's buffer is a sum of gradients, about g / (1 - momentum); the others
# are averages of them.
MEANINGS = {
    "exp_avg": MOMENTUM,  # Adam, AdamW
    "momentum_buffer": MOMENTUM,  # SGD, SGDLL
    "exp_avg_sq": SECOND_MOMENT,  # Adam, AdamW
    "square_avg": SECOND_MOMENT,  # RMSprop
}


def state_of(state: dict[str, Any], meaning: str) -> Tensor | None:
    """The tensor of that meaning in a parameter's state, if the optimizer keeps one by now.

    RMSprop's buffer is no momentum of this sort: it holds gradients divided by sqrt(v) already.
    """
    if meaning == MOMENTUM and "square_avg" in state:
        return None
    keys = (key for key, means in MEANINGS.items() if means == meaning)
    return next((state[key] for key in keys if state.get(key) is not None), None)


def states(optimizers: Iterable[Optimizer]) -> dict[Tensor, dict[str, Any]]:
    """State of every parameter that has one, of all optimizers together."""
    return {p: state for optimizer in optimizers for p, state in optimizer.state.items()}


@dataclass(frozen=True)
class Settings:
    """What a step is made with. Read it before the step: a scheduler may act right after.

    Args:
        lr: learning rate; 0 where the optimizer has none.
        eps: added to sqrt(v); 0 where the optimizer has none.
        betas: decay of m and of v, where both are corrected for their start at 0.
    """

    lr: float
    eps: float = 0.0
    betas: tuple[float, float] | None = None

    @classmethod
    def of(cls, group: dict[str, Any]) -> Settings:
        betas = group.get("betas")
        pair = (float(betas[0]), float(betas[1])) if betas else None
        return cls(float(group.get("lr", 0.0)), float(group.get("eps", 0.0)), pair)


def settings(optimizers: Iterable[Optimizer]) -> dict[Tensor, Settings]:
    """Present settings of every parameter."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return {p: Settings.of(group) for group in groups for p in group["params"]}


@dataclass(frozen=True)
class Dynamics:
    """Measurements of some parameters at one optimizer step. Several add up; `Dynamics()` is 0.

    Args:
        weight: sum of squared weights.
        gradient: sum of squared gradients.
        momentum: sum of squares of the momentum that moved the weights.
        history: the momentum before the step, against the gradient.
        distributions: values by name, of sqrt(v) and of effective learning rates.
    """

    weight: float = 0.0
    gradient: float = 0.0
    momentum: float = 0.0
    history: Alignment = field(default_factory=Alignment)
    distributions: dict[str, Distribution] = field(default_factory=dict)

    def __add__(self, other: Dynamics) -> Dynamics:
        empty = Distribution()
        names = self.distributions | other.distributions
        return Dynamics(
            self.weight + other.weight,
            self.gradient + other.gradient,
            self.momentum + other.momentum,
            self.history + other.history,
            {
                name: self.distributions.get(name, empty) + other.distributions.get(name, empty)
                for name in names
            },
        )

    def summary(self, quantiles: Sequence[float]) -> dict[str, float]:
        """Every number by its name; those that are not defined are left out."""
        values = self.history.summary()
        for name, squares in (("gradient", self.gradient), ("momentum", self.momentum)):
            if squares:
                values[f"{name}_norm"] = math.sqrt(squares)
            if squares and self.weight:
                values[f"weight_to_{name}"] = math.sqrt(self.weight / squares)
                values[f"log10_weight_to_{name}"] = math.log10(self.weight / squares) / 2
        for name, spread in self.distributions.items():
            values |= {f"{name}_{key}": v for key, v in spread.summary(quantiles).items()}
        return values


def second_moment_distributions(
    state: dict[str, Any], made_with: Settings
) -> dict[str, Distribution]:
    """`sqrt_v` and `effective_lr`, of the raw state and as `..._corrected` for the actual step.

    Raw is what arXiv:2602.07729 shows: sqrt(v), and lr / (sqrt(v) + eps). Corrected takes out the
    start at 0, as Adam's step does: sqrt(v / bias2), and lr / bias1 / (sqrt(v / bias2) + eps) with
    bias_i = 1 - beta_i^t (2605.17787). RMSprop does not correct, so there raw is the actual step.
    AMSGrad divides by its largest v so far, which is then the corrected one.
    """
    second_moment = state_of(state, SECOND_MOMENT)
    if second_moment is None:
        return {}
    v, lr, eps = whole(second_moment).float(), made_with.lr, made_with.eps
    found = {
        "sqrt_v": distribution(v.sqrt()),
        "effective_lr": distribution(effective_lr(v, lr=lr, eps=eps)),
    }
    if made_with.betas is None or "step" not in state:
        return found
    largest = state.get("max_exp_avg_sq")
    v = v if largest is None else whole(largest).float()
    bias1, bias2 = (1 - beta ** float(state["step"]) for beta in made_with.betas)
    actual = effective_lr(v, lr=lr / bias1, eps=eps, bias=bias2)
    return found | {
        "sqrt_v_corrected": distribution((v / bias2).sqrt()),
        "effective_lr_corrected": distribution(actual),
    }


def report(
    name: str, by_name: dict[str, Dynamics], quantiles: Sequence[float]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Scalars of the whole model, and the record for a file, with `name` in front of each.

    Args:
        name: "" for the optimizer's own.
        by_name: measurements of each parameter.
        quantiles: of the distributions.
    """
    groups: dict[str, dict[str, Dynamics]] = {"layers": {}, "kinds": {}, "tensors": by_name}
    for parameter, part in by_name.items():
        for group, key in (("layers", str(layer_of(parameter))), ("kinds", kind_of(parameter))):
            groups[group][key] = groups[group].get(key, Dynamics()) + part
    total = sum(by_name.values(), Dynamics())
    scalars = total.summary(quantiles)
    record: dict[str, Any] = {"total": scalars}
    for group, parts in groups.items():
        record[group] = {key: part.summary(quantiles) for key, part in parts.items()}
    for key, spread in total.distributions.items():
        edges, counts = spread.histogram()
        histogram = {"log10_edges": edges, "counts": counts, "zeros": spread.zeros}
        record[f"{key}_histogram"] = histogram
    return {f"{name}{key}": value for key, value in scalars.items()}, {
        f"{name}{key}": value for key, value in record.items()
    }


class Shadow:
    """Adam's m and v of the gradients that some other optimizer gets; they move no weight.

    8 bytes a weight in memory.

    Args:
        made_with: learning rate, eps and betas that Adam would have.
    """

    def __init__(self, made_with: Settings) -> None:
        assert made_with.betas is not None
        self.settings, self.betas = made_with, made_with.betas
        self.states: dict[Tensor, dict[str, Any]] = {}

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor]) -> None:
        """Take in the present gradients, as torch.optim.Adam does."""
        for parameter in parameters:
            if parameter.grad is None:
                continue
            gradient = parameter.grad.detach().float()
            state = self.states.setdefault(parameter, {"step": 0})
            if not state["step"]:
                state |= {key: torch.zeros_like(gradient) for key in ("exp_avg", "exp_avg_sq")}
            state["step"] += 1
            state["exp_avg"].lerp_(gradient, 1 - self.betas[0])
            decayed = state["exp_avg_sq"].mul_(self.betas[1])
            decayed.addcmul_(gradient, gradient, value=1 - self.betas[1])
