"""RLModule: one Lightning epoch is one iteration: a rollout and the updates made from it."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlsgd.algorithms.base import PolicyModule
from rlsgd.algorithms.checks import check_arguments, check_group_size
from rlsgd.algorithms.evaluation import Evaluator, evaluates_answers
from rlsgd.algorithms.idle_rows import idle_entropy, mark_idle_rows
from rlsgd.algorithms.rollout_metrics import rollout_metrics
from rlsgd.algorithms.token_weights import TokenWeights
from rlsgd.algorithms.trying import longest_row, try_models
from rlsgd.core.distributed import derived_seed
from rlsgd.core.problems import Prompt, Scores
from rlsgd.core.types import Experience, Microbatch, Rollouts
from rlsgd.data import PromptDataModule
from rlsgd.functional.aggregation import Aggregation, aggregate, aggregation_count
from rlsgd.functional.corrections import Correction
from rlsgd.functional.kl import KLEstimator, kl_penalty
from rlsgd.functional.logprobs import policy_ratio
from rlsgd.functional.losses import Clip
from rlsgd.models.onednn import use_onednn
from rlsgd.models.prompt_sharing import ShareSetting, settle_sharing
from rlsgd.models.scoring import completion_logprobs
from rlsgd.models.sharded_loading import load_sharded_reference
from rlsgd.rollout.loader import sample_and_score
from rlsgd.rollout.microbatches import computed_tokens, rollout_logprobs, split_rows
from rlsgd.rollout.sampler import HFSampler, Sampler


@evaluates_answers
class RLModule(PolicyModule):
    """Base of the algorithms. A subclass defines `advantages`, and `per_token_loss` or `clip`.

    Args:
        sampler: how completions are sampled; none means by the policy itself (HFSampler).
        max_completion_tokens: most tokens of a completion.
        eval_samples: completions of each problem that `rlsgd test` and `rlsgd validate` sample for
            avg@k, pass@k and the majority's answer; 0 for the greedy one alone, as during `fit`.
        eval_temperature: softmax temperature of those samples.
        aggregation: how per-token losses become one number; `-norm` is by max_completion_tokens.
        temperature: softmax temperature of sampling, and of every log-probability the loss sees.
        inner_epochs: passes over each rollout.
        minibatches: optimizer steps in each pass.
        kl_coef: weight of KL(policy || reference); 0 loads no reference.
        kl_estimator: estimator of that KL (see functional/kl.py for their gradients).
        entropy_coef: weight of the entropy bonus: this times the mean entropy of the minibatch's
            tokens is subtracted from the loss. Its backward keeps one more [B, K, V] tensor.
        top_entropy_fraction: share of a rollout's tokens, those of highest entropy when sampled,
            that get a policy gradient (arXiv:2506.01939 has 0.2); 1 is all.
        correction: remedy for a sampler that disagrees with the trainer (see
            functional/corrections.py); none is off.
        correction_low: ratio below which a mask rejects tokens or completions.
        correction_high: ratio above which a mask rejects, and to which truncation lowers it.
        share_prompts: whether the prompt of a group is computed once in the forward and backward of
            an update, for all of its completions that are in a microbatch, and no padding. The same
            numbers but for rounding. `auto` tries it out on the model and shares where it holds.
    """

    smallest_group: ClassVar[int] = 1
    sequence_level: ClassVar[bool] = False  # one ratio for each completion
    kl_in_loss: bool = True  # otherwise `advantages` takes `reward_kl` off the reward
    clip: Clip = Clip()

    def __init__(
        self,
        sampler: Sampler | None = None,
        max_completion_tokens: int = 256,
        eval_samples: int = 0,
        eval_temperature: float = 1.0,
        aggregation: Aggregation = "token-mean",
        temperature: float = 1.0,
        inner_epochs: int = 1,
        minibatches: int = 1,
        kl_coef: float = 0.0,
        kl_estimator: KLEstimator = "k3",
        entropy_coef: float = 0.0,
        top_entropy_fraction: float = 1.0,
        correction: Correction | None = None,
        correction_low: float = 0.5,
        correction_high: float = 2.0,
        share_prompts: ShareSetting = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sampler = sampler or HFSampler()
        self.max_completion_tokens = max_completion_tokens
        self.evaluator = Evaluator(eval_samples, eval_temperature)
        self.aggregation: Aggregation = aggregation
        self.temperature = temperature
        self.inner_epochs = inner_epochs
        self.minibatches = minibatches
        self.kl_coef = kl_coef
        self.kl_estimator: KLEstimator = kl_estimator
        self.entropy_coef = entropy_coef
        self.share_prompts: ShareSetting = share_prompts
        check_arguments(self)
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
            self.reference = self.rounded(load_sharded_reference(self.policy_path, self.sharding()))
            if self.onednn:  # the very products of the policy: KL starts at 0
                use_onednn(self.reference)

    @property
    def shares_prompts(self) -> bool:
        """Whether policy and reference share prompts, tried out when it is first asked."""
        models = filter(None, (self.policy, self.reference))
        return settle_sharing(self.share_prompts, models, longest_row(self))

    def on_fit_start(self) -> None:
        super().on_fit_start()
        try_models(self)

    @property
    def task_data(self) -> PromptDataModule:
        """The data module: the task's problems, and the scorer of their completions."""
        return cast(Any, self.trainer).datamodule

    def check_group_size(self, group_size: int) -> None:
        check_group_size(self, group_size)

    def advantages(self, rollouts: Rollouts, group_size: int) -> Tensor:
        """Advantages of a whole rollout, [B] or [B, T]."""
        raise NotImplementedError

    def ratio(self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
        """Policy now over policy at rollout time, [B, T] with gradient."""
        return policy_ratio(logprobs, old_logprobs, mask)

    def per_token_loss(self, logprobs: Tensor, old_logprobs: Tensor, batch: Microbatch) -> Tensor:
        """The loss [B, T], linear in the advantages, before the KL term: the clipped surrogate."""
        ratio = self.ratio(logprobs, old_logprobs, batch.completion_mask)
        parts = (ratio, batch.advantages, batch.completion_mask)
        for name, clipped in self.clip.fractions(*parts).items():
            self.log_token_mean(name, clipped, batch)
        return self.clip.loss(*parts)

    @property
    def policy_loss_alone(self) -> bool:
        """Whether `per_token_loss` is the whole loss, so that rows of which it is 0 are idle."""
        terms = self.entropy_coef or (self.kl_coef and self.kl_in_loss)
        return type(self).loss is RLModule.loss and not terms

    def loss(self, batch: Microbatch) -> Tensor:
        """This microbatch's share of the minibatch loss, []."""
        logprobs, old_logprobs = self.policy_logprobs(batch)
        per_token = self.per_token_loss(logprobs, old_logprobs, batch)
        if self.kl_in_loss and batch.ref_logprobs is not None:
            kl = self.kl(logprobs, old_logprobs, batch.ref_logprobs, batch.completion_mask)
            self.log_token_mean("kl", kl, batch)
            per_token = per_token + self.kl_coef * kl
        loss = aggregate(
            per_token,
            batch.completion_mask,
            mode=self.aggregation,
            denominator=batch.denominator,
            max_completion_tokens=self.max_completion_tokens,
        )
        if self.entropy_coef:
            assert batch.entropy is not None, "policy_logprobs has left it there"
            loss = loss - self.entropy_coef * self.token_mean(batch.entropy, batch)
        return loss

    def rollout(self, prompts: list[Prompt], group_size: int) -> Experience:
        """Sample a group of completions for each prompt, score them and compute advantages.

        Runs under the trainer's precision, like `training_step`, so that the old log-probabilities
        are those of the very policy that is updated.
        """
        rollouts, scores = self.collect(prompts, group_size)
        rollouts.metrics |= rollout_metrics(rollouts, scores, group_size)
        rollouts.metrics |= self.task_data.task.metrics(self.current_epoch)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            if self.reference is not None:
                rollouts.ref_logprobs, _ = self.scored(self.reference, rollouts)
            entropy = None
            if self.needs_old_logprobs(rollouts):  # otherwise see `policy_logprobs`
                wanted = self.token_weights.need_entropy or rollouts.sampled_entropy is None
                rollouts.old_logprobs, entropy = self.scored(self.policy, rollouts, wanted)
            advantages = self.advantages(rollouts, group_size)
            experience = Experience.extending(rollouts, advantages=advantages)
            self.token_weights.apply(experience, entropy)
            mark_idle_rows(self, experience, entropy)
        return experience

    def collect(
        self, prompts: list[Prompt], group_size: int, *, attempt: int = 0
    ) -> tuple[Rollouts, Scores]:
        """Sample and score; `attempt` tells apart several rounds of sampling in an iteration."""
        again = (attempt,) if attempt else ()
        rollouts, scores = sample_and_score(
            self,  # pyright: ignore[reportArgumentType]  # cached properties
            prompts,
            completions_per_prompt=group_size,
            temperature=self.temperature,
            seed=derived_seed(self.seed, "rollout", self.current_epoch, self.global_rank, *again),
            with_entropy=self.policy_loss_alone,  # of rows that no update computes
        )
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
        place = (self.current_epoch, inner_epoch, self.global_rank)
        return split_rows(
            computed_tokens(rollouts, group_size),
            minibatches=self.minibatches,
            microbatches=self.trainer.accumulate_grad_batches,
            seed=derived_seed(self.seed, "minibatches", *place),
            together=group_size,
        )

    def scored(
        self, model: PreTrainedModel, rollouts: Rollouts, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities, and entropy if asked for, of a whole rollout; [B, T] each."""
        rows = self.minibatch_rows(rollouts, inner_epoch=0)
        return rollout_logprobs(
            model, rollouts, rows, temperature=self.temperature, with_entropy=with_entropy
        )

    def training_step(self, batch: Microbatch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.require_finite_loss(loss)
        self.log_share("loss", loss)
        self.log_dict(batch.metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        return self.scale_for_backward(loss)

    def policy_logprobs(self, batch: Microbatch) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of the policy now, and of the policy that sampled.

        With one update from each rollout the two are the same numbers, and no second forward pass
        is made. The entropy is logged, idle rows' by who sampled them, and left for the bonus.
        """
        logprobs, entropy = completion_logprobs(
            self.policy,
            batch,
            temperature=self.temperature,
            with_entropy=True,
            entropy_gradient=self.entropy_coef > 0,
        )
        assert entropy is not None, "it was asked for"
        batch.entropy = entropy
        self.log_share("entropy", self.token_mean(entropy, batch) + idle_entropy(batch))
        old_logprobs = batch.old_logprobs if batch.old_logprobs is not None else logprobs.detach()
        return logprobs, old_logprobs

    def token_mean(self, per_token: Tensor, batch: Microbatch) -> Tensor:
        """This microbatch's share of the mean over the minibatch's completion tokens."""
        mask = batch.completion_mask
        return aggregate(per_token, mask, mode="token-mean", denominator=batch.num_tokens)

    def log_token_mean(self, name: str, per_token: Tensor, batch: Microbatch) -> None:
        """Log the mean over the minibatch's completion tokens."""
        self.log_share(name, self.token_mean(per_token, batch))

    def denominators(self, minibatch: Rollouts) -> tuple[Tensor, Tensor]:
        """This rank's part of the loss denominator and of the token count of a minibatch."""
        mask = minibatch.completion_mask
        return aggregation_count(mask, self.aggregation), aggregation_count(mask, "token-mean")

    def kl(self, logprobs: Tensor, old: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        """Estimate of KL(policy || reference) [B, T], 0 where masked."""
        return kl_penalty(logprobs, reference, mask, estimator=self.kl_estimator, old_logprobs=old)

    def reward_kl(self, rollouts: Rollouts) -> Tensor:
        """What `advantages` takes off each token's reward, [B, T]; 0 with KL off or in the loss."""
        if self.kl_in_loss or rollouts.ref_logprobs is None:
            return torch.zeros(rollouts.completion_mask.shape, device=rollouts.input_ids.device)
        logprobs, mask = rollouts.old_logprobs, rollouts.completion_mask
        assert logprobs is not None, "a KL in the reward needs them"
        kl = self.kl(logprobs, logprobs, rollouts.ref_logprobs, mask)
        rollouts.metrics["kl"] = float(kl.sum() / mask.sum())
        return self.kl_coef * kl
