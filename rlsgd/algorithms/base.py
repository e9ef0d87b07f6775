"""PolicyModule: what every trained policy shares, whether by reward or by supervision."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from rlsgd.distributed import derived_seed
from rlsgd.models import load_policy, load_tokenizer, resolve_model, stop_token_ids
from rlsgd.problems import Prompt, Scores
from rlsgd.rollout.sampler import HFSampler, Sampler
from rlsgd.types import DivergedError, Rollouts


class PolicyModule(LightningModule):
    """A causal language model, its optimizer and its evaluation on verifiable problems.

    Args:
        policy: the model to train: `embedded`, a folder in Hugging Face format, a hub name, or the
            name of a prepared model.
        optimizer: any torch optimizer class; SGD has momentum 0 and weight decay 0 unless asked.
        lr_scheduler: any torch scheduler class, stepped once each epoch; none keeps the rate.
        sampler: how completions are sampled; none means transformers' generate.
        max_completion_tokens: most tokens of a completion.
        random_weights: start from the model's config with random weights instead of its weights.
        seed: of everything this module draws; `seed_everything` sets it on the command line.
    """

    def __init__(
        self,
        policy: str = "embedded",
        optimizer: OptimizerCallable = torch.optim.SGD,
        lr_scheduler: LRSchedulerCallable | None = None,
        sampler: Sampler | None = None,
        max_completion_tokens: int = 256,
        random_weights: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if max_completion_tokens < 1:
            raise ValueError("--model.max_completion_tokens must be at least 1")
        self.policy_path = policy
        self.starting_folder = resolve_model(policy)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.sampler = sampler or HFSampler()
        self.max_completion_tokens = max_completion_tokens
        self.random_weights = random_weights
        self.seed = seed
        self.strict_loading = False  # checkpoints carry no frozen model
        self.tokenizer = load_tokenizer(policy)
        self.eval_reward, self.eval_accuracy = MeanMetric(), MeanMetric()
        self.eval_length, self.eval_truncated = MeanMetric(), MeanMetric()
        self.policy: PreTrainedModel

    def configure_model(self) -> None:
        """Load the policy; called once the devices are known, and again by a second loop."""
        if not hasattr(self, "policy"):
            self.policy = load_policy(self.policy_path, random_weights=self.random_weights)
            self.stop_token_ids = stop_token_ids(self.policy, self.tokenizer)

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
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # pyright: ignore
        if not torch.isfinite(norm):
            raise DivergedError(
                f"the gradient norm is {float(norm)} at optimizer step {self.global_step}: weights "
                "are left as they were before this step. Lower --model.optimizer.init_args.lr or "
                "set --trainer.gradient_clip_val"
            )
        by_norm = gradient_clip_val is not None and gradient_clip_algorithm != "value"
        clipped = norm > gradient_clip_val if by_norm else torch.zeros_like(norm)
        self.log("grad_norm", norm, on_step=False, on_epoch=True)
        self.log("grad_clipped_fraction", clipped.float(), on_step=False, on_epoch=True)
        self.clip_gradients(
            optimizer,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
        )

    def scale_for_backward(self, loss_share: Tensor) -> Tensor:
        """Undo the two averages that follow: Lightning's over microbatches, the strategy's over ranks.

        `loss_share` is this microbatch's sum over the global denominator, so the shares of all
        microbatches and ranks must be added, not averaged.
        """
        return loss_share * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def log_share(self, name: str, share: Tensor) -> None:
        """Log a quantity given as this microbatch's share of a minibatch total."""
        value = self.scale_for_backward(share.detach())
        self.log(name, value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def require_finite_weights(self) -> None:
        """Raise `DivergedError` if any weight is infinite or not a number."""
        for name, parameter in self.policy.named_parameters():
            if not torch.isfinite(parameter).all():
                raise DivergedError(
                    f"{name} is no longer finite after optimizer step {self.global_step}. Lower "
                    "--model.optimizer.init_args.lr or set --trainer.gradient_clip_val"
                )

    # ---- sampling and evaluation

    def sample(
        self, prompts: list[Prompt], *, completions_per_prompt: int, temperature: float, seed: int
    ) -> Rollouts:
        """Completions of the present policy with their texts; a prompt's rows are adjacent."""
        self.require_finite_weights()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            rollouts = self.sampler.sample(
                self.policy,
                [prompt.token_ids for prompt in prompts],
                completions_per_prompt=completions_per_prompt,
                max_completion_tokens=self.max_completion_tokens,
                temperature=temperature,
                stop_token_ids=self.stop_token_ids,
                pad_token_id=self.tokenizer.pad_token_id,
                seed=seed,
            )
        rollouts.prompts = [p for p in prompts for _ in range(completions_per_prompt)]
        rollouts.completions = [
            self.tokenizer.decode(ids[mask], skip_special_tokens=True)
            for ids, mask in zip(rollouts.input_ids, rollouts.completion_mask, strict=True)
        ]
        return rollouts

    def score(self, rollouts: Rollouts) -> Scores:
        """Score completions with the data module's reward and store the rewards."""
        scorer = self.trainer.datamodule.scorer  # pyright: ignore
        scores = scorer.score(rollouts.completions, [p.problem for p in rollouts.prompts])
        rollouts.rewards = torch.tensor(scores.rewards, device=rollouts.input_ids.device)
        return scores

    def evaluate(self, prompts: list[Prompt]) -> Rollouts:
        """Greedy completions of held-out prompts, scored into the running evaluation metrics."""
        seed = derived_seed(self.seed, "evaluate")
        rollouts = self.sample(prompts, completions_per_prompt=1, temperature=0.0, seed=seed)
        scores = self.score(rollouts)
        assert rollouts.rewards is not None
        self.eval_reward.update(rollouts.rewards)
        self.eval_accuracy.update((rollouts.rewards >= scores.full_marks).float())
        self.eval_length.update(rollouts.completion_mask.sum(1).float())
        self.eval_truncated.update(rollouts.truncated.float())
        return rollouts

    def log_evaluation(self, stage: str) -> None:
        """Log and reset the evaluation metrics; torchmetrics reduces them over ranks."""
        self.log(f"{stage}/accuracy", self.eval_accuracy, prog_bar=True)
        self.log(f"{stage}/reward", self.eval_reward)
        self.log(f"{stage}/mean_length", self.eval_length)
        self.log(f"{stage}/truncated_fraction", self.eval_truncated)

    def validation_step(self, batch: list[Prompt], batch_idx: int) -> None:
        self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self.log_evaluation("val")

    def test_step(self, batch: list[Prompt], batch_idx: int) -> None:
        self.evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self.log_evaluation("test")

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> Rollouts:
        return self.evaluate(batch)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen reference out: it is the starting policy, which is on disk already."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            name: value for name, value in state.items() if not name.startswith("reference.")
        }
