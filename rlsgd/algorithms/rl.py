"""RLModule: one Lightning epoch is one iteration: a rollout and the updates made from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.algorithms.base import PolicyModule
from rlsgd.distributed import derived_seed
from rlsgd.functional.advantages import zero_variance_groups
from rlsgd.functional.masked import aggregate, aggregation_count, validate_aggregation
from rlsgd.models import completion_logprobs, load_reference
from rlsgd.problems import Prompt, Scores
from rlsgd.types import DivergedError, Rollouts


class RLModule(PolicyModule):
    """Base of the algorithms. A subclass defines `advantages` and `loss`; the rest is here.

    Args:
        temperature: of sampling, and of every log-probability the loss sees.
        inner_epochs: passes over each rollout.
        minibatches: optimizer steps in each pass.
        aggregation: how per-token losses become one number: `token-mean`, `seq-mean-token-mean`,
            `seq-mean-token-sum`, or `seq-mean-token-sum-norm` (divided by max_completion_tokens).
        kl_coef: weight of KL(policy || reference); 0 loads no reference.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        inner_epochs: int = 1,
        minibatches: int = 1,
        aggregation: str = "token-mean",
        kl_coef: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if temperature <= 0:
            raise ValueError("--model.temperature must be above 0: exploration needs sampling")
        if inner_epochs < 1 or minibatches < 1:
            raise ValueError("--model.inner_epochs and --model.minibatches must be at least 1")
        validate_aggregation(aggregation, self.max_completion_tokens)
        if kl_coef < 0:
            raise ValueError("--model.kl_coef must not be negative")
        if kl_coef and self.random_weights:
            raise ValueError("--model.kl_coef needs --model.random_weights false: the reference is loaded")
        self.temperature = temperature
        self.inner_epochs = inner_epochs
        self.minibatches = minibatches
        self.aggregation = aggregation
        self.kl_coef = kl_coef
        self.reference: PreTrainedModel | None = None

    def configure_model(self) -> None:
        super().configure_model()
        if self.kl_coef and self.reference is None:
            self.reference = load_reference(self.policy_path)

    # ---- what an algorithm defines

    def advantages(self, rollouts: Rollouts, group_size: int) -> Tensor:
        """Advantages of a whole rollout, [B] or [B, T]."""
        raise NotImplementedError

    def loss(self, batch: Rollouts) -> Tensor:
        """This microbatch's share of the minibatch loss, []."""
        raise NotImplementedError

    # ---- one iteration

    def rollout(self, prompts: list[Prompt], group_size: int) -> Rollouts:
        """Sample a group of completions for each prompt, score them and compute advantages.

        Runs under the trainer's precision, like `training_step`, so that the old log-probabilities
        are those of the very policy that is updated.
        """
        seed = derived_seed(self.seed, "rollout", self.current_epoch, self.global_rank)
        rollouts = self.sample(
            prompts,
            completions_per_prompt=group_size,
            temperature=self.temperature,
            seed=seed,
        )
        scores = self.score(rollouts)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            if self.reference is not None:
                rollouts.ref_logprobs = self.logprobs(self.reference, rollouts)
            if self.inner_epochs * self.minibatches > 1:
                rollouts.old_logprobs = self.logprobs(self.policy, rollouts)
            # otherwise the only update sees the policy that sampled: `old_logprobs` below
            rollouts.advantages = self.advantages(rollouts, group_size)
        rollouts.metrics = rollout_metrics(rollouts, scores, group_size)
        return rollouts

    def logprobs(self, model: PreTrainedModel, rollouts: Rollouts) -> Tensor:
        """Log-probabilities [B, T] in slices the size of a microbatch."""
        parts = self.minibatches * self.trainer.accumulate_grad_batches
        rows = torch.arange(len(rollouts)).tensor_split(min(parts, len(rollouts)))
        slices = [
            completion_logprobs(model, rollouts.select(r), temperature=self.temperature)[0]
            for r in rows
        ]
        return torch.cat(slices)

    def training_step(self, batch: Rollouts, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {float(loss)} at optimizer step {self.global_step}. Lower "
                "--model.optimizer.init_args.lr or set --trainer.gradient_clip_val"
            )
        self.log_share("loss", loss)
        self.log_dict(batch.metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        return self.scale_for_backward(loss)

    # ---- for losses

    def policy_logprobs(self, batch: Rollouts) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of the policy now, and of the policy that sampled.

        With one update from each rollout the two are the same numbers, and no second forward pass
        is made. The entropy is logged.
        """
        logprobs, entropy = completion_logprobs(
            self.policy, batch, temperature=self.temperature, with_entropy=True
        )
        assert entropy is not None
        self.log_token_mean("entropy", entropy, batch)
        old_logprobs = batch.old_logprobs if batch.old_logprobs is not None else logprobs.detach()
        return logprobs, old_logprobs

    def aggregate(self, per_token: Tensor, batch: Rollouts) -> Tensor:
        """This microbatch's share of the loss under `--model.aggregation`."""
        assert batch.denominator is not None
        return aggregate(
            per_token,
            batch.completion_mask,
            mode=self.aggregation,
            denominator=batch.denominator,
            max_completion_tokens=self.max_completion_tokens,
        )

    def log_token_mean(self, name: str, per_token: Tensor, batch: Rollouts) -> None:
        """Log the mean over the minibatch's completion tokens."""
        assert batch.num_tokens is not None
        share = aggregate(
            per_token, batch.completion_mask, mode="token-mean", denominator=batch.num_tokens
        )
        self.log_share(name, share)

    def denominators(self, minibatch: Rollouts) -> tuple[Tensor, Tensor]:
        """This rank's part of the loss denominator and of the token count of a minibatch."""
        mask = minibatch.completion_mask
        return aggregation_count(mask, self.aggregation), aggregation_count(mask, "token-mean")


def rollout_metrics(rollouts: Rollouts, scores: Scores, group_size: int) -> dict[str, float]:
    """Metrics of one rollout, under the names that TRL's GRPO uses where it has one."""
    rewards = torch.tensor(scores.rewards)
    lengths = rollouts.completion_mask.sum(1).float()
    groups = rewards.view(-1, group_size)
    finished = lengths[~rollouts.truncated]
    metrics = {
        "reward": rewards.mean(),
        "reward_std": groups.std(1).mean() if group_size > 1 else torch.tensor(0.0),
        "frac_reward_zero_std": zero_variance_groups(rewards, group_size).float().mean(),
        "rollout/accuracy": (rewards >= scores.full_marks).float().mean(),
        "rollout/verifier_failures": torch.tensor(float(sum(map(bool, scores.failures)))),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/mean_terminated_length": finished.mean() if len(finished) else lengths.mean(),
        "completions/clipped_ratio": rollouts.truncated.float().mean(),
        "num_tokens": lengths.sum(),
    }
    for name, part in scores.parts.items():
        metrics[f"rewards/{name}/mean"] = torch.tensor(part).mean()
        metrics[f"rewards/{name}/std"] = torch.tensor(part).std(correction=0)
    return {name: float(value) for name, value in metrics.items()}
