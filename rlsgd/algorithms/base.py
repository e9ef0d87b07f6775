"""PolicyModule: what everything that is trained shares: a language model and its optimizer."""

from __future__ import annotations

from math import isfinite
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsgd.core.checkpoints import LazyTensors
from rlsgd.core.distributed import derived_seed, gathered, global_sum, local_shard
from rlsgd.core.made_with import remembers_arguments
from rlsgd.core.types import DivergedError, TokenBatch
from rlsgd.functional.updates import not_finite
from rlsgd.models.loading import check_vocabulary, load_tokenizer, resolve_model, stop_token_ids
from rlsgd.models.onednn import use_onednn
from rlsgd.models.recomputing import recompute_activations
from rlsgd.models.scoring import prove_scoring
from rlsgd.models.sharded_loading import load_sharded_policy
from rlsgd.models.sharding import Sharding
from rlsgd.models.strategy import sharding_of
from rlsgd.models.subnetwork import Subnetwork, require_no_weight_decay
from rlsgd.optimizers.arguments import set_training
from rlsgd.optimizers.protocol import Attaches, ReportsSteps, StepsInBackward, measured_gradients
from rlsgd.optimizers.roles import mark_roles
from rlsgd.optimizers.rounding import Rounding, keep_rounded, round_weights

Model = TypeVar("Model", bound=nn.Module)


@remembers_arguments
class PolicyModule(LightningModule):
    """A causal language model, its optimizer and what is logged of its gradients.

    Args:
        policy: the model to train: `embedded`, a folder in Hugging Face format, a hub name, or the
            name of a prepared model.
        optimizer: any torch optimizer class; SGD has momentum 0 and weight decay 0 unless asked.
        lr_scheduler: any torch scheduler class, stepped once each epoch; none keeps the rate.
        random_weights: whether to start from the model's config with random weights instead of its
            weights.
        weight_rounding: rounding that keeps the weights at values that bfloat16 has, when they are
            loaded and after every optimizer step. Compute, gradients and
            optimizer states stay in the trainer's precision, so that this is the effect of bfloat16
            storage alone, without its saving of memory. None is off.
        subnetwork: earlier run whose changed weights alone are trained.
        activation_checkpointing: whether to compute each layer's activations again in the backward
            pass instead of keeping them: the same gradients, less memory, about a third more time.
        onednn: whether to compute linear layers in float32 on a CPU by oneDNN instead of torch's
            BLAS: faster on AMD's processors, the same but for rounding.
        seed: seed of everything this module draws; `seed_everything` sets it on the command line.
    """

    def __init__(
        self,
        policy: str = "embedded",
        optimizer: OptimizerCallable = torch.optim.SGD,
        lr_scheduler: LRSchedulerCallable | None = None,
        random_weights: bool = False,
        weight_rounding: Rounding | None = None,
        subnetwork: Subnetwork | None = None,
        activation_checkpointing: bool = False,
        onednn: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.policy_path = policy
        self.starting_folder = resolve_model(policy)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.random_weights = random_weights
        self.weight_rounding: Rounding | None = weight_rounding
        self.subnetwork = subnetwork
        self.activation_checkpointing = activation_checkpointing
        self.onednn = onednn
        self.seed = seed
        self.is_logging = True
        # by this batch, still on the device; none between batches
        self.logged: list[tuple[str, Tensor, Any, Any]] | None = None
        self.strict_loading = False  # checkpoints carry no frozen model
        self.tokenizer = load_tokenizer(policy)
        self.policy: PreTrainedModel

    def configure_model(self) -> None:
        """Load the policy; called once the devices are known, and again by a second loop."""
        if not hasattr(self, "policy"):
            policy = load_sharded_policy(
                self.policy_path, self.sharding(), random_weights=self.random_weights
            )
            self.policy = self.rounded(policy)
            self.save_activation_memory(self.policy)
            if self.onednn:
                use_onednn(self.policy)
            check_vocabulary(self.policy, self.tokenizer)
        self.stop_token_ids = stop_token_ids(self.policy, self.tokenizer)

    def sharding(self) -> Sharding | None:
        """How the trainer's strategy shards models; none where every process holds them whole."""
        return None if self.device_mesh is None else sharding_of(self.trainer.strategy)

    def save_activation_memory(self, model: Any) -> None:
        """Let a model of transformers recompute activations if `activation_checkpointing` is on."""
        if self.activation_checkpointing:
            recompute_activations(model)

    def configure_optimizers(self) -> Any:
        """One optimizer over the policy's parameters."""
        optimizer = self.make_optimizer(self.optimizer, self.policy)
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}

    def rounded(self, model: Model) -> Model:
        """A model as it was loaded, its weights rounded in place if `weight_rounding` says so."""
        if self.weight_rounding:
            round_weights(model.parameters())
        return model

    def make_optimizer(
        self, factory: OptimizerCallable, model: nn.Module, *, prefix: str = ""
    ) -> torch.optim.Optimizer:
        """An optimizer of all parameters of a model, with `prefix` before its metrics' names.

        What else it may have is in `rlsgd.optimizers.protocol`.
        """
        mark_roles(model)
        optimizer = factory(model.parameters())
        if isinstance(optimizer, Attaches):
            optimizer.attach(self.trainer, model.named_parameters())
        if self.weight_rounding:

            def seed(*place: int) -> int:
                return derived_seed(self.seed, f"{prefix}rounding", self.global_step, *place)

            keep_rounded(optimizer, self.weight_rounding, seed)

        if isinstance(optimizer, ReportsSteps):

            def log_step(optimizer: Any, *_: Any) -> None:
                for name, value in optimizer.step_metrics.items():
                    self.log(f"{prefix}{name}", value, on_step=False, on_epoch=True, batch_size=1)

            optimizer.register_step_post_hook(log_step)
        return optimizer

    def on_fit_start(self) -> None:
        prove_scoring(self.policy)  # on its device, before anything expensive
        if self.subnetwork is not None:
            for optimizer in self.trainer.optimizers:
                require_no_weight_decay(optimizer)
            self.subnetwork.restrict(self.policy, LazyTensors.open(self.starting_folder))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, idx: int) -> Any:
        """Batches of tokens move as a whole; lists of prompts are text and stay."""
        return batch.to(device) if isinstance(batch, TokenBatch) else batch

    # ---- gradients

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Step; an optimizer that has to know the norm before it applies a gradient measures it.

        That takes a pass of its own over the same batch, which logs nothing.
        """
        own = optimizer.optimizer  # inside Lightning's wrapper, which has copies of its attributes
        if isinstance(own, StepsInBackward):
            self.is_logging = False
            own.measure_norm(optimizer_closure)
            self.is_logging = True
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning's, which would wait for the device at every value.

        One process keeps numbers on the CPU and brings what a batch has logged there in one copy.
        """
        if not self.is_logging:
            return
        alone = self._trainer is not None and self._trainer.world_size == 1
        if isinstance(value, int | float):
            value = torch.tensor(value, dtype=torch.get_default_dtype())
            value = value if alone else value.to(self.device, non_blocking=True)
        is_here = not isinstance(value, Tensor) or value.device.type == "cpu"
        if is_here or not alone or self.logged is None:
            super().log(name, value, *args, **kwargs)
        else:
            self.logged.append((name, value.detach().float(), args, kwargs))

    def on_train_batch_start(self, *args: Any) -> None:
        self.logged = []

    def on_train_batch_end(self, *args: Any) -> None:
        logged, self.logged = self.logged, None
        if logged:
            values = torch.stack([value for _, value, *_ in logged]).cpu()
            for (name, _, args, kwargs), value in zip(logged, values, strict=True):
                super().log(name, value, *args, **kwargs)

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
        norm, clipped = measured_gradients(optimizer, clip_val, algorithm)
        if not isfinite(norm):
            raise DivergedError(
                f"the {prefix}gradient norm is {norm} at optimizer step {self.global_step}: "
                "weights are left as they were before this step",
                optimizer=flag,
            )
        rate = float(optimizer.param_groups[0]["lr"])
        step = {"learning_rate": rate, "grad_norm": norm, "grad_clipped_fraction": float(clipped)}
        for name, value in step.items():  # every step counts alike, whatever its rows
            self.log(f"{prefix}{name}", value, on_step=False, on_epoch=True, batch_size=1)
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
        """Raise `DivergedError` on every rank if the loss [] of one is not finite."""
        total = global_sum(loss.detach())  # one rank alone would leave the others waiting
        if not torch.isfinite(total):
            raise DivergedError(f"the loss is {float(total)} at optimizer step {self.global_step}")

    def require_finite_weights(self) -> None:
        """Raise `DivergedError` on every rank if any weight is infinite or not a number."""
        weights = {n: local_shard(p) for n, p in self.policy.named_parameters()}
        broken = not_finite(weights)
        if broken := gathered(broken):
            raise DivergedError.of_weight(broken[0], self.global_step)

    def on_train_epoch_start(self) -> None:  # the rollout is drawn after it
        self.set_training(True)

    def on_train_epoch_end(self) -> None:
        self.set_training(False)

    def on_validation_start(self) -> None:
        self.set_training(False)

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == "fit":
            self.set_training(True)

    def set_training(self, training: bool) -> None:
        """Let the optimizers put the weights where they are trained, or where they are used."""
        for optimizer in self.trainer.optimizers:
            set_training(optimizer, training)

    def on_train_end(self) -> None:
        self.require_finite_weights()  # the last step has no rollout after it

    # ---- checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Without the frozen reference: it is the starting policy, which is on disk already."""
        state = super().state_dict(*args, **kwargs)
        for name in [name for name in state if name.startswith("reference.")]:
            del state[name]
        return state
