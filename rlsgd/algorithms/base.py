"""PolicyModule: what every trained policy shares, whether by reward or by supervision."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from rlsgd.distributed import derived_seed, global_norm
from rlsgd.evaluation import Estimate, ProblemResults, estimates
from rlsgd.models import (
    check_positions,
    check_vocabulary,
    load_policy,
    load_tokenizer,
    resolve_model,
    stop_token_ids,
)
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
        eval_samples: completions that `rlsgd test` and `rlsgd validate` sample for each problem
            besides the greedy one, for avg@k, pass@k and the majority's answer; 0 for none. The
            validation during `fit` is always greedy.
        eval_temperature: of those samples.
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
        eval_samples: int = 0,
        eval_temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if max_completion_tokens < 1:
            raise ValueError("--model.max_completion_tokens must be at least 1")
        if eval_samples < 0:
            raise ValueError("--model.eval_samples must be 0 (greedy alone) or positive")
        if eval_temperature <= 0:
            raise ValueError("--model.eval_temperature must be above 0; greedy is reported anyway")
        self.policy_path = policy
        self.starting_folder = resolve_model(policy)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.sampler = sampler or HFSampler()
        self.max_completion_tokens = max_completion_tokens
        self.random_weights = random_weights
        self.eval_samples = eval_samples
        self.eval_temperature = eval_temperature
        self.seed = seed
        self.strict_loading = False  # checkpoints carry no frozen model
        self.tokenizer = load_tokenizer(policy)
        self.eval_reward, self.eval_accuracy = MeanMetric(), MeanMetric()
        self.eval_length, self.eval_truncated = MeanMetric(), MeanMetric()
        self.eval_problems = ProblemResults(eval_samples)
        self.eval_values: dict[str, Tensor] = {}  # of the last full evaluation, by problem
        self.eval_estimates: dict[str, Estimate] = {}
        self.validates_fully = False
        self.policy: PreTrainedModel

    def configure_model(self) -> None:
        """Load the policy; called once the devices are known, and again by a second loop."""
        if not hasattr(self, "policy"):
            self.policy = load_policy(self.policy_path, random_weights=self.random_weights)
            check_vocabulary(self.policy, self.tokenizer)
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

    # ---- sampling and evaluation

    def sample(
        self, prompts: list[Prompt], *, completions_per_prompt: int, temperature: float, seed: int
    ) -> Rollouts:
        """Completions of the present policy with their texts; a prompt's rows are adjacent."""
        self.require_finite_weights()
        longest = max(len(prompt.token_ids) for prompt in prompts)
        check_positions(self.policy, longest, self.max_completion_tokens)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            rollouts = self.sampler.sample(
                self.policy,
                [prompt.token_ids for prompt in prompts],
                completions_per_prompt=completions_per_prompt,
                max_completion_tokens=self.max_completion_tokens,
                temperature=temperature,
                stop_token_ids=self.stop_token_ids,
                pad_token_id=int(self.tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
                seed=seed,
            )
        rollouts.prompts = [p for p in prompts for _ in range(completions_per_prompt)]
        rollouts.completions = [
            str(self.tokenizer.decode(ids[mask], skip_special_tokens=True))
            for ids, mask in zip(rollouts.input_ids, rollouts.completion_mask, strict=True)
        ]
        return rollouts

    def score(self, rollouts: Rollouts) -> Scores:
        """Score completions with the data module's reward and store the rewards."""
        scorer = self.trainer.datamodule.scorer  # pyright: ignore
        scores = scorer.score(rollouts.completions, [p.problem for p in rollouts.prompts])
        rollouts.rewards = torch.tensor(scores.rewards, device=rollouts.input_ids.device)
        return scores

    @property
    def evaluates_fully(self) -> bool:
        """Whether intervals and samples are wanted: not while fitting, which has to be fast."""
        return self.trainer.testing or (self.trainer.validating and self.validates_fully)

    def evaluate(self, prompts: list[Prompt], batch_idx: int = 0) -> Rollouts:
        """Greedy completions of held-out prompts, scored into the running evaluation metrics.

        A full evaluation samples as well. Its samples are the same again for the same seed, number
        of ranks and batch size.
        """
        seed = derived_seed(self.seed, "evaluate", self.global_rank, batch_idx)
        rollouts, correct, _ = self.graded(prompts, 1, temperature=0.0, seed=seed)
        assert rollouts.rewards is not None
        self.eval_reward.update(rollouts.rewards)
        self.eval_accuracy.update(correct)
        self.eval_length.update(rollouts.completion_mask.sum(1).float())
        self.eval_truncated.update(rollouts.truncated.float())
        if self.evaluates_fully and self.eval_samples:
            _, sampled, answers = self.graded(
                prompts, self.eval_samples, temperature=self.eval_temperature, seed=seed
            )
            self.eval_problems.update(correct, sampled, answers)
        elif self.evaluates_fully:
            self.eval_problems.update(correct)
        return rollouts

    def graded(
        self, prompts: list[Prompt], completions_per_prompt: int, *, temperature: float, seed: int
    ) -> tuple[Rollouts, Tensor, list[str | None]]:
        """Scored completions, 1 for each correct one (else 0), and the answers found in them."""
        rollouts = self.sample(
            prompts,
            completions_per_prompt=completions_per_prompt,
            temperature=temperature,
            seed=seed,
        )
        scores = self.score(rollouts)
        assert rollouts.rewards is not None
        return rollouts, (rollouts.rewards >= scores.full_marks).float(), scores.answers

    def log_evaluation(self, stage: str) -> None:
        """Log and reset the evaluation metrics; torchmetrics reduces them over ranks."""
        self.log(f"{stage}/accuracy", self.eval_accuracy, prog_bar=True)
        self.log(f"{stage}/reward", self.eval_reward)
        self.log(f"{stage}/mean_length", self.eval_length)
        self.log(f"{stage}/truncated_fraction", self.eval_truncated)
        if not self.evaluates_fully:
            return
        self.eval_values = self.eval_problems.compute()
        self.eval_problems.reset()
        self.eval_estimates = estimates(self.eval_values, seed=derived_seed(self.seed, "bootstrap"))
        for name, (value, low, high) in self.eval_estimates.items():
            if name != "accuracy":  # which is logged above
                self.log(f"{stage}/{name}", value, sync_dist=True)
            self.log(f"{stage}/{name}/low", low, sync_dist=True)
            self.log(f"{stage}/{name}/high", high, sync_dist=True)

    def validation_step(self, batch: list[Prompt], batch_idx: int) -> None:
        self.evaluate(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.log_evaluation("val")

    def test_step(self, batch: list[Prompt], batch_idx: int) -> None:
        self.evaluate(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.log_evaluation("test")

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> Rollouts:
        return self.evaluate(batch, batch_idx)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen reference out: it is the starting policy, which is on disk already."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            name: value for name, value in state.items() if not name.startswith("reference.")
        }
