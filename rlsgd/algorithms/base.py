"""PolicyModule: what everything that is trained shares: a language model and its optimizer."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.distributed import global_norm
from rlsgd.models import (
    check_vocabulary,
    load_policy,
    load_tokenizer,
    resolve_model,
)
from rlsgd.types import DivergedError, Rollouts


class PolicyModule(LightningModule):
    """A causal language model, its optimizer and what is logged of its gradients.

    Args:
        policy: the model to train: `embedded`, a folder in Hugging Face format, a hub name, or the
            name of a prepared model.
        optimizer: any torch optimizer class; SGD has momentum 0 and weight decay 0 unless asked.
        lr_scheduler: any torch scheduler class, stepped once each epoch; none keeps the rate.
        random_weights: start from the model's config with random weights instead of its weights.
        seed: of everything this module draws; `seed_everything` sets it on the command line.
    """

    def __init__(
        self,
        policy: str = "embedded",
        optimizer: OptimizerCallable = torch.optim.SGD,
        lr_scheduler: LRSchedulerCallable | None = None,
        random_weights: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.policy_path = policy
        self.starting_folder = resolve_model(policy)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.random_weights = random_weights
        self.seed = seed
        self.strict_loading = False  # checkpoints carry no frozen model
        self.tokenizer = load_tokenizer(policy)
        self.policy: PreTrainedModel

    def configure_model(self) -> None:
        """Load the policy; called once the devices are known, and again by a second loop."""
        if not hasattr(self, "policy"):
            self.policy = load_policy(self.policy_path, random_weights=self.random_weights)
            check_vocabulary(self.policy, self.tokenizer)

    def configure_optimizers(self) -> Any:
        """One optimizer over the policy's parameters."""
        optimizer = self.optimizer(self.policy.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, idx: int) -> Any:
        """Rollouts move as a whole; lists of prompts are text and stay."""
        return batch.to(device) if isinstance(batch, Rollouts) else batch

    # ---- gradients

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Log the norm before clipping and the share of steps clipped; stop if it is not finite."""
        self.clip_and_log(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def clip_and_log(
        self,
        optimizer: torch.optim.Optimizer,
        clip_val: int | float | None,
        algorithm: str | None,
        *,
        prefix: str = "",
        flag: str = "optimizer",
    ) -> None:
        """Clip the gradients of one optimizer, with `prefix` before its metrics' names."""
        gradients = [
            p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        norm = global_norm(gradients)
        if not torch.isfinite(norm):
            raise DivergedError(
                f"the {prefix}gradient norm is {float(norm)} at optimizer step {self.global_step}: "
                f"weights are left as they were before this step. Lower --model.{flag}.init_args.lr"
                " or set --trainer.gradient_clip_val"
            )
        # by value a step is clipped if its largest element is
        measured = global_norm(gradients, torch.inf) if algorithm == "value" else norm
        clipped = measured > (clip_val or torch.inf)
        rate = float(optimizer.param_groups[0]["lr"])
        self.log(f"{prefix}learning_rate", rate, on_step=False, on_epoch=True)
        self.log(f"{prefix}grad_norm", norm, on_step=False, on_epoch=True)
        name = f"{prefix}grad_clipped_fraction"
        self.log(name, clipped.float(), on_step=False, on_epoch=True)
        self.clip_gradients(
            optimizer, gradient_clip_val=clip_val, gradient_clip_algorithm=algorithm
        )

    def scale_for_backward(self, loss_share: Tensor) -> Tensor:
        """Undo two averages to come: Lightning's over microbatches, the strategy's over ranks.

        `loss_share` is this microbatch's sum over the global denominator, so the shares of all
        microbatches and ranks must be added, not averaged.
        """
        return loss_share * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def log_share(self, name: str, share: Tensor) -> None:
        """Log a quantity given as this microbatch's share of a minibatch total."""
        value = self.scale_for_backward(share.detach())
        self.log(name, value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def require_finite_loss(self, loss: Tensor) -> None:
        """Raise `DivergedError` if the loss [] is infinite or not a number."""
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {float(loss)} at optimizer step {self.global_step}. Lower "
                "--model.optimizer.init_args.lr or set --trainer.gradient_clip_val"
            )

    def require_finite_weights(self) -> None:
        """Raise `DivergedError` if any weight is infinite or not a number."""
        for name, parameter in self.policy.named_parameters():
            if not torch.isfinite(parameter).all():
                raise DivergedError(
                    f"{name} is no longer finite after optimizer step {self.global_step}. Lower "
                    "--model.optimizer.init_args.lr or set --trainer.gradient_clip_val"
                )

    def on_train_end(self) -> None:
        self.require_finite_weights()  # the last step has no rollout after it

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen reference out: it is the starting policy, which is on disk already."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            name: value for name, value in state.items() if not name.startswith("reference.")
        }
