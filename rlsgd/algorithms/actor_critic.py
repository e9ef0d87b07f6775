"""ActorCritic: a policy and a critic with optimizers of their own, clipped apart."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from rlsgd.algorithms.rl import RLModule
from rlsgd.algorithms.trying import longest_row
from rlsgd.core.types import Rollouts
from rlsgd.functional.critic import explained_variance
from rlsgd.functional.masked import masked_mean
from rlsgd.models.value_model import ValueModel, load_value_model, prove_values
from rlsgd.optimizers import OptimizerContainer


class ActorCritic(RLModule):
    """Base of the algorithms with a critic, which starts from the policy's weights and a zero head.

    Args:
        value_optimizer: the critic's optimizer; none means the policy's class and settings.
        shared_backbone: the critic is a head on the policy's hidden states, whose gradient is then
            that of both losses. It reads them in a forward pass of its own.
        critic_warmup_epochs: epochs at the start in which the critic alone is trained: the policy
            gets no gradient and no weight decay, and stays exactly as it is.
    """

    def __init__(
        self,
        value_optimizer: OptimizerCallable | None = None,
        shared_backbone: bool = False,
        critic_warmup_epochs: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if critic_warmup_epochs < 0:
            raise ValueError("--model.critic_warmup_epochs must not be negative")
        self.value_optimizer = value_optimizer or self.optimizer
        self.shared_backbone = shared_backbone
        self.critic_warmup_epochs = critic_warmup_epochs
        self.value: ValueModel

    def configure_model(self) -> None:
        super().configure_model()
        if not hasattr(self, "value"):
            value = load_value_model(
                self.policy_path,
                shared_backbone=self.shared_backbone,
                hidden_size=self.policy.config.get_text_config().hidden_size,
                random_weights=self.random_weights,
                sharding=self.sharding(),
            )
            self.value = self.rounded(value)
            if self.value.backbone is not None:
                self.save_activation_memory(self.value.backbone)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        prove_values(self.value, self.policy, longest_row(self))

    def configure_optimizers(self) -> Any:
        """One container with the policy's optimizer and the critic's, in this order."""
        policy = self.make_optimizer(self.optimizer, self.policy)
        critic = self.make_optimizer(self.value_optimizer, self.value, prefix="critic/")
        container = OptimizerContainer([policy, critic])
        if self.lr_scheduler is None:
            return container
        return {"optimizer": container, "lr_scheduler": self.lr_scheduler(container)}

    def values(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """The critic's values [B, T] and last values [B] of a whole rollout."""
        mask = rollouts.completion_mask
        values = torch.zeros(mask.shape, device=mask.device)
        last_values = torch.zeros(len(mask), device=mask.device)
        for microbatches in self.minibatch_rows(rollouts, inner_epoch=0):
            for rows in microbatches:
                values[rows], last_values[rows] = self.value(self.policy, rollouts.select(rows))
        return values, last_values

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip policy and critic apart and log both norms; stop if one is not finite.

        The norm of both together would let a large gradient of the critic shrink the policy's step,
        which with SGD is a lower learning rate.
        """
        assert isinstance(optimizer, OptimizerContainer)
        policy, critic = optimizer.optimizers
        if self.current_epoch < self.critic_warmup_epochs:
            policy.zero_grad(set_to_none=True)  # an optimizer passes over what has no gradient
        clip = (gradient_clip_val, gradient_clip_algorithm)
        self.clip_and_log(policy, *clip)
        self.clip_and_log(critic, *clip, prefix="critic/", flag="value_optimizer")


def critic_metrics(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, float]:
    """How well the critic predicts this rank's rollout, under the names that verl uses."""
    return {
        "critic/vf_explained_var": float(explained_variance(values, returns, mask)),
        "critic/values/mean": float(masked_mean(values, mask)),
        "critic/returns/mean": float(masked_mean(returns, mask)),
    }
