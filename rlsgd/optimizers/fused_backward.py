"""FusedBackwardSGD: SGD inside the backward pass, so that one gradient exists at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from rlsgd.core.distributed import whole
from rlsgd.core.types import DivergedError

CLIP_FLAG = "--model.optimizer.init_args.gradient_clip_val"
ClipAlgorithm = Literal["norm", "value", "tensor-norm"]
CLIP_ALGORITHMS: tuple[ClipAlgorithm, ...] = get_args(ClipAlgorithm)


class FusedBackwardSGD(Optimizer):
    """SGD without momentum that applies and frees each gradient as soon as backward has it.

    After LOMO (arXiv:2306.09782, section 3.1). A step gives the weights of `torch.optim.SGD`, and
    gradients take the memory of the largest one instead of all. What autograd holds inside comes on
    top: of a tied weight, the gradient of one use waits for that of the other.

    `step` needs a closure with one backward pass, as Lightning's automatic optimization gives it.
    Refused, because a weight would change too early or by a wrong gradient: accumulation,
    `--trainer.gradient_clip_val`, a gradient scaler, other optimizers beside it, and processes that
    each hold the whole weights (DDP averages after the hooks that this optimizer lives on; FSDP2
    calls them with the reduced shard).

    A gradient that is not finite is not applied and stops the run, but the tensors that backward
    reached before it have taken their step already; with the clip algorithm `norm` none has.

    Args:
        params: the parameters, or groups of them.
        lr: learning rate.
        weight_decay: this times the weight is added to its gradient, after clipping.
        gradient_clip_val: limit of the clipping; none is off.
        gradient_clip_algorithm: `norm`, of all gradients together, takes a second forward and
            backward pass: the first measures the norm and changes nothing. `value` limits every
            element, `tensor-norm` the norm of every gradient by itself.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm = "norm",
    ) -> None:
        flag = "--model.optimizer.init_args"
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"{flag}.lr and {flag}.weight_decay must not be negative")
        if gradient_clip_val is not None and gradient_clip_val <= 0:
            raise ValueError(
                f"{flag}.gradient_clip_val {gradient_clip_val}: must be above 0; leave it out to "
                "clip nothing"
            )
        if gradient_clip_algorithm not in CLIP_ALGORITHMS:
            raise ValueError(
                f"{flag}.gradient_clip_algorithm {gradient_clip_algorithm!r}: must be one of "
                f"{', '.join(CLIP_ALGORITHMS)}"
            )
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.clip_val = gradient_clip_val
        self.clip_algorithm = gradient_clip_algorithm
        self.clipped = False  # whether the last step clipped anything
        self.norms: dict[Tensor, Tensor] = {}  # of the gradients of the last step, before clipping
        self.total_norm: Tensor | None = None  # between the two passes of clipping by it
        self.reached: set[Tensor] = set()  # by the backward pass under way
        self.names: dict[Tensor, str] = {}
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if several and not all(isinstance(parameter, DTensor) for parameter in self.parameters()):
            raise ValueError(
                "--trainer.strategy: FusedBackwardSGD cannot train weights of which every process "
                "holds all, since DDP averages gradients after they were applied; use one device, "
                "or shard the weights with rlsgd.models.strategy.FSDP2Strategy"
            )

    # ---- what a trainer asks

    @staticmethod
    def check_trainer(trainer: Any) -> None:
        """Refuse the flags of a Lightning trainer that this optimizer cannot honour.

        Raises:
            ValueError: names the flag, and the one to use instead.
        """
        if trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}: "
                "FusedBackwardSGD applies a gradient as soon as backward has it, so that none can "
                "be accumulated; set it to 1, and for less memory take smaller batches"
            )
        if trainer.gradient_clip_val:
            raise ValueError(
                f"--trainer.gradient_clip_val {trainer.gradient_clip_val}: with FusedBackwardSGD "
                "no gradient is left to clip when Lightning would; set "
                "--model.optimizer.init_args.gradient_clip_val instead"
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError(
                f"--trainer.precision {trainer.precision}: FusedBackwardSGD would apply gradients "
                "before the loss scale is taken off; use 32-true, bf16-mixed or bf16-true"
            )

    def attach(self, trainer: Any, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Check the trainer, and learn the parameters' names for errors."""
        self.check_trainer(trainer)
        self.names = {parameter: name for name, parameter in named_parameters}

    def gradient_norm(self) -> Tensor:
        """Norm [] of all gradients of the last step together, before clipping."""
        norms = [self.norms[p] for p in self.parameters() if p in self.norms]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)

    # ---- a step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Evaluate the closure, whose backward pass makes the step; twice if clipping needs it.

        Raises:
            DivergedError: a gradient is not finite.
        """
        if closure is None:
            raise RuntimeError(
                "FusedBackwardSGD steps inside the backward pass: pass it a closure. A trainer "
                "that calls step() after backward, as TRL's, cannot use it; take torch.optim.SGD"
            )
        if self.total_norm is None:
            self.measure_norm(closure)
        if self.total_norm is None:
            self.norms = {}
        self.clipped = False
        try:
            return self.run(closure, self.apply)
        finally:
            self.total_norm = None

    def measure_norm(self, closure: Callable[[], Any]) -> None:
        """The first of two passes: evaluate the closure, keep the norm, change no weight.

        The closure runs again instead of keeping its graph: a kept graph holds every activation
        when backward reaches the embedding, which often has the largest gradient. Does nothing
        unless the clip algorithm is `norm`. `step` calls it unless it was called before.

        Raises:
            DivergedError: the norm is not finite. All weights are as they were.
        """
        if self.clip_val is None or self.clip_algorithm != "norm":
            return
        self.norms = {}
        self.run(closure, self.record)
        norm = self.gradient_norm()
        if not torch.isfinite(norm):
            raise DivergedError(
                f"the gradient norm is {float(norm)}: weights are left as they were before this "
                "step",
                clip=f"a lower {CLIP_FLAG}",
            )
        self.total_norm = norm

    def run(self, closure: Callable[[], Any], hook: Callable[..., None]) -> Any:
        """Evaluate the closure with a hook on every gradient that is ready."""
        if any(parameter.grad is not None for parameter in self.parameters()):
            raise RuntimeError(
                "FusedBackwardSGD found gradients of a backward pass outside its step: it cannot "
                "accumulate, so free them (zero_grad) before the step"
            )
        self.reached = set()
        with self.hooked(hook), torch.enable_grad():
            return closure()

    @contextmanager
    def hooked(self, hook: Callable[..., None]) -> Iterator[None]:
        # only for the time of a step: whoever runs another backward pass gets plain gradients
        handles = [
            parameter.register_post_accumulate_grad_hook(partial(hook, group))
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ---- hooks: called once all uses of a parameter have added to its gradient

    @torch.no_grad()
    def record(self, group: dict[str, Any], parameter: Tensor) -> None:
        """Keep the norm of a gradient and free it."""
        self.norms[parameter] = norm_of(self.take(parameter))

    @torch.no_grad()
    def apply(self, group: dict[str, Any], parameter: Tensor) -> None:
        """Clip a gradient, apply it and free it."""
        gradient = self.take(parameter)
        norm = self.total_norm
        if norm is None:
            norm = self.norms[parameter] = norm_of(gradient)
            if not torch.isfinite(norm):
                raise DivergedError(
                    f"the gradient norm of {self.name_of(parameter)} is {float(norm)}: it is not "
                    f"applied, but {len(self.reached) - 1} tensors that backward reached before it "
                    "have taken this step",
                    clip=CLIP_FLAG,
                )
        if self.clip_val is not None:
            by_value = self.clip_algorithm == "value"
            measured = norm_of(gradient, torch.inf) if by_value else norm
            self.clipped |= bool(measured > self.clip_val)
            if by_value:
                gradient.clamp_(-self.clip_val, self.clip_val)
            else:  # the arithmetic of torch's clip_grad_norm_
                gradient.mul_(float((self.clip_val / (norm + 1e-6)).clamp(max=1.0)))
        if group["weight_decay"]:
            gradient.add_(parameter, alpha=group["weight_decay"])
        # not on .data: autograd must notice if it still needs the weight
        parameter.add_(gradient, alpha=-group["lr"])

    def take(self, parameter: Tensor) -> Tensor:
        """The gradient, which from now on belongs to the caller alone."""
        if parameter in self.reached:
            raise RuntimeError(
                f"a second gradient of {self.name_of(parameter)} in one step: FusedBackwardSGD has "
                "applied the first. Run one backward pass in a step, and no reentrant checkpointing"
            )
        self.reached.add(parameter)
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None, "the hook runs when there is a gradient"
        return gradient

    # ---- parameters

    @staticmethod
    def states_per_weight(group: dict[str, Any]) -> int:
        """Numbers kept for each weight of a group, for the closed form of the memory."""
        return 0

    def parameters(self) -> Iterator[Tensor]:
        """Every parameter, in the order of the groups."""
        for group in self.param_groups:
            yield from group["params"]

    def name_of(self, parameter: Tensor) -> str:
        number = next(i for i, own in enumerate(self.parameters()) if own is parameter)
        return self.names.get(parameter, f"tensor {number} of shape {tuple(parameter.shape)}")


def norm_of(gradient: Tensor, order: float = 2.0) -> Tensor:
    """Norm [] of one gradient, over every rank's shard, so that all ranks decide alike."""
    return whole(torch.linalg.vector_norm(gradient, order))
