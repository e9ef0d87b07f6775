"""RLModule: one Lightning epoch is one iteration: a rollout and the updates made from it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.algorithms.rollout_metrics import rollout_metrics
from rlsgd.algorithms.token_losses import TokenLossModule
from rlsgd.algorithms.token_weights import TokenWeights
from rlsgd.core.distributed import derived_seed
from rlsgd.core.problems import Prompt, Scores
from rlsgd.core.types import Rollouts
from rlsgd.functional.kl import kl_penalty, validate_kl_estimator
from rlsgd.functional.logprobs import policy_ratio
from rlsgd.models.onednn import use_onednn
from rlsgd.models.prompt_sharing import ShareSetting, settle_sharing
from rlsgd.models.scoring import completion_logprobs, prove_scoring
from rlsgd.models.sharded_loading import load_sharded_reference
from rlsgd.rollout.microbatches import computed_tokens, rollout_logprobs, split_rows


class RLModule(TokenLossModule):
    """Base of the algorithms. A subclass defines `advantages` and `per_token_loss`.

    Args:
        temperature: of sampling, and of every log-probability the loss sees.
        inner_epochs: passes over each rollout.
        minibatches: optimizer steps in each pass.
        kl_coef: weight of KL(policy || reference); 0 loads no reference.
        kl_estimator: `k1`, `k2`, `k3` or `k3-corrected` (see functional/kl.py for their gradients).
        entropy_coef: this times the mean entropy of the minibatch's completion tokens is subtracted
            from the loss, whatever the aggregation. Its backward keeps one more [B, K, V] tensor.
        top_entropy_fraction: only this share of a rollout's tokens, those of highest entropy when
            sampled, get a policy gradient (arXiv:2506.01939 has 0.2); 1 is all.
        correction: of a sampler that disagrees with the trainer: `token-truncate`, `token-mask`,
            `sequence-truncate` or `sequence-mask` (see functional/corrections.py); none is off.
        correction_low: a mask rejects tokens or completions whose ratio is below.
        correction_high: a mask rejects above, truncation lowers the ratio to it.
        share_prompts: whether the prompt of a group is computed once in the forward and backward of
            an update, for all of its completions that are in a microbatch, and no padding. The same
            numbers but for rounding. `auto` tries it out on the model and shares where it holds.
    """

    smallest_group: ClassVar[int] = 1
    sequence_level: ClassVar[bool] = False  # one ratio for each completion
    kl_in_loss: bool = True  # otherwise `advantages` takes `reward_kl` off the reward

    def __init__(
        self,
        temperature: float = 1.0,
        inner_epochs: int = 1,
        minibatches: int = 1,
        kl_coef: float = 0.0,
        kl_estimator: str = "k3",
        entropy_coef: float = 0.0,
        top_entropy_fraction: float = 1.0,
        correction: str | None = None,
        correction_low: float = 0.5,
        correction_high: float = 2.0,
        share_prompts: ShareSetting = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if temperature <= 0:
            raise ValueError("--model.temperature must be above 0: exploration needs sampling")
        if inner_epochs < 1 or minibatches < 1:
            raise ValueError("--model.inner_epochs and --model.minibatches must be at least 1")
        validate_kl_estimator(kl_estimator)
        if kl_coef < 0:
            raise ValueError("--model.kl_coef must not be negative")
        if kl_coef and not self.kl_in_loss and kl_estimator != "k1":
            raise ValueError(
                f"--model.kl_estimator must be k1 (got {kl_estimator}): {type(self).__name__} has "
                "its KL in the reward, where no other estimator has the gradient of the KL"
            )
        if kl_coef and self.random_weights:
            raise ValueError(
                "--model.kl_coef needs --model.random_weights false: the reference is loaded"
            )
        if entropy_coef < 0:
            raise ValueError("--model.entropy_coef must not be negative")
        self.temperature = temperature
        self.inner_epochs = inner_epochs
        self.minibatches = minibatches
        self.kl_coef = kl_coef
        self.kl_estimator = kl_estimator
        self.entropy_coef = entropy_coef
        self.share_prompts: ShareSetting = share_prompts
        self.token_weights = TokenWeights(
            top_entropy_fraction=top_entropy_fraction,
            correction=correction,
            correction_low=correction_low,
            correction_high=correction_high,
            sampler=self.sampler,
            sequence_level=self.sequence_level,
        )
        self.reference: PreTrainedModel | None = None

    def configure_model(self) -> None:
        super().configure_model()
        if self.kl_coef and self.reference is None:
            reference = load_sharded_reference(self.policy_path, self.sharding())
            self.reference = self.rounded(reference)
            if self.onednn:  # the very products of the policy: KL starts at 0
                use_onednn(self.reference)

    @property
    def shares_prompts(self) -> bool:
        """Whether policy and reference share prompts, tried out when it is first asked."""
        return settle_sharing(self.share_prompts, filter(None, (self.policy, self.reference)))

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.reference is not None:
            prove_scoring(self.reference)
        _ = self.shares_prompts  # said, or refused, before the first rollout

    # ---- what an algorithm defines

    def check_group_size(self, group_size: int) -> None:
        """Refuse a group size that the advantages cannot be computed from."""
        if group_size < self.smallest_group:
            raise ValueError(
                f"--data.group_size {group_size}: {type(self).__name__} compares the completions "
                f"of a prompt with each other; use at least {self.smallest_group}"
            )

    def advantages(self, rollouts: Rollouts, group_size: int) -> Tensor:
        """Advantages of a whole rollout, [B] or [B, T]."""
        raise NotImplementedError

    def ratio(self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
        """Policy now over policy at rollout time, [B, T] with gradient."""
        return policy_ratio(logprobs, old_logprobs, mask)

    def per_token_loss(self, logprobs: Tensor, old_logprobs: Tensor, batch: Rollouts) -> Tensor:
        """The policy's loss [B, T], linear in the advantages, before the KL term."""
        raise NotImplementedError

    def loss(self, batch: Rollouts) -> Tensor:
        """This microbatch's share of the minibatch loss, []."""
        logprobs, old_logprobs = self.policy_logprobs(batch)
        per_token = self.per_token_loss(logprobs, old_logprobs, batch)
        if self.kl_in_loss and batch.ref_logprobs is not None:
            kl = self.kl(logprobs, old_logprobs, batch)
            self.log_token_mean("kl", kl, batch)
            per_token = per_token + self.kl_coef * kl
        loss = self.aggregate(per_token, batch)
        if self.entropy_coef:
            assert batch.entropy is not None
            loss = loss - self.entropy_coef * self.token_mean(batch.entropy, batch)
        return loss

    # ---- one iteration

    def rollout(self, prompts: list[Prompt], group_size: int) -> Rollouts:
        """Sample a group of completions for each prompt, score them and compute advantages.

        Runs under the trainer's precision, like `training_step`, so that the old log-probabilities
        are those of the very policy that is updated.
        """
        rollouts, scores = self.collect(prompts, group_size)
        rollouts.metrics.update(rollout_metrics(rollouts, scores, group_size))
        rollouts.metrics.update(self.task_data.task.metrics(self.current_epoch))
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            if self.reference is not None:
                rollouts.ref_logprobs = self.logprobs(self.reference, rollouts)
            entropy = None
            if self.needs_old_logprobs(rollouts):
                with_entropy = self.token_weights.need_entropy
                scored = self.scored(self.policy, rollouts, with_entropy=with_entropy)
                rollouts.old_logprobs, entropy = scored
            # otherwise the only update sees the policy that sampled: see `policy_logprobs`
            rollouts.advantages = self.advantages(rollouts, group_size)
            self.token_weights.apply(rollouts, entropy)
        return rollouts

    def collect(
        self, prompts: list[Prompt], group_size: int, *, attempt: int = 0
    ) -> tuple[Rollouts, Scores]:
        """Sample and score; `attempt` tells apart several rounds of sampling in an iteration."""
        again = (attempt,) if attempt else ()
        rollouts = self.sample(
            prompts,
            completions_per_prompt=group_size,
            temperature=self.temperature,
            seed=derived_seed(self.seed, "rollout", self.current_epoch, self.global_rank, *again),
        )
        scores = self.score(rollouts)
        self.task_data.record(prompts, scores, epoch=self.current_epoch)
        return rollouts, scores

    def needs_old_logprobs(self, rollouts: Rollouts) -> bool:
        """Whether the rollout has to be scored by the policy that sampled it before any update."""
        return (
            self.inner_epochs * self.minibatches > 1
            or (rollouts.ref_logprobs is not None and not self.kl_in_loss)
            or rollouts.sampler_logprobs is not None
            or self.token_weights.need_entropy
        )

    def minibatch_rows(self, rollouts: Rollouts, inner_epoch: int) -> list[list[Tensor]]:
        """Row indices of the microbatches of each minibatch of an inner epoch of this rank."""
        group_size = self.task_data.group_size if self.shares_prompts else 1
        return split_rows(
            computed_tokens(rollouts, group_size),
            minibatches=self.minibatches,
            microbatches=self.trainer.accumulate_grad_batches,
            seed=derived_seed(
                self.seed, "minibatches", self.current_epoch, inner_epoch, self.global_rank
            ),
            together=group_size,
        )

    def logprobs(self, model: PreTrainedModel, rollouts: Rollouts) -> Tensor:
        """Log-probabilities [B, T] of a whole rollout under a model."""
        return self.scored(model, rollouts)[0]

    def scored(
        self, model: PreTrainedModel, rollouts: Rollouts, *, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities, and entropy if asked for, of a whole rollout; [B, T] each."""
        rows = self.minibatch_rows(rollouts, inner_epoch=0)
        return rollout_logprobs(
            model, rollouts, rows, temperature=self.temperature, with_entropy=with_entropy
        )

    def training_step(self, batch: Rollouts, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.require_finite_loss(loss)
        self.log_share("loss", loss)
        self.log_dict(batch.metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        return self.scale_for_backward(loss)

    # ---- for losses

    def policy_logprobs(self, batch: Rollouts) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of the policy now, and of the policy that sampled.

        With one update from each rollout the two are the same numbers, and no second forward pass
        is made. The entropy is logged, and left in the batch for the bonus.
        """
        logprobs, batch.entropy = completion_logprobs(
            self.policy,
            batch,
            temperature=self.temperature,
            with_entropy=True,
            entropy_gradient=self.entropy_coef > 0,
        )
        assert batch.entropy is not None
        self.log_token_mean("entropy", batch.entropy, batch)
        old_logprobs = batch.old_logprobs if batch.old_logprobs is not None else logprobs.detach()
        return logprobs, old_logprobs

    def kl(self, logprobs: Tensor, old_logprobs: Tensor, batch: Rollouts) -> Tensor:
        """Estimate of KL(policy || reference) [B, T], 0 where masked."""
        assert batch.ref_logprobs is not None
        return kl_penalty(
            logprobs,
            batch.ref_logprobs,
            batch.completion_mask,
            estimator=self.kl_estimator,
            old_logprobs=old_logprobs,
        )

    def reward_kl(self, rollouts: Rollouts) -> Tensor:
        """What `advantages` takes off each token's reward, [B, T]; 0 with KL off or in the loss."""
        if self.kl_in_loss or rollouts.ref_logprobs is None:
            return torch.zeros(rollouts.completion_mask.shape, device=rollouts.input_ids.device)
        assert rollouts.old_logprobs is not None
        kl = self.kl(rollouts.old_logprobs, rollouts.old_logprobs, rollouts)
        rollouts.metrics["kl"] = float(kl.sum() / rollouts.completion_mask.sum())
        return self.kl_coef * kl
