"""Weights of single tokens in the policy loss, whatever the algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsgd.core.distributed import gathered
from rlsgd.core.flags import flags
from rlsgd.core.types import Experience
from rlsgd.functional.corrections import (
    Correction,
    correction_weights,
    mismatch_metrics,
    require_agreement,
    validate_bounds,
    validate_correction,
)
from rlsgd.functional.entropy import top_entropy_threshold, validate_top_entropy
from rlsgd.rollout.sampler import Sampler


class TokenWeights:
    """Corrects for a sampler that disagrees with the trainer, and picks the tokens of high entropy.

    Every policy loss here is linear in the advantages (for weights that are not negative), so a
    weight is multiplied into the advantage of its token. It then acts on the policy loss alone,
    not on KL or entropy terms. Tokens that a mask rejects leave the completion mask: they count in
    no term and in no denominator. Tokens of low entropy keep a policy loss of 0, so they do count
    in the denominator, as in the paper.

    The entropy threshold is one number for a whole rollout on all ranks, of the policy that sampled
    it. The paper takes one for each microbatch, of the present policy: the loss would depend on
    how a minibatch is split.
    """

    def __init__(
        self,
        *,
        top_entropy_fraction: float,
        correction: Correction | None,
        correction_low: float,
        correction_high: float,
        sampler: Sampler,
        sequence_level: bool,
    ) -> None:
        with flags("--model."):
            validate_top_entropy(top_entropy_fraction)
            if correction is not None:
                validate_correction(correction)
        if top_entropy_fraction < 1 and sequence_level:
            raise ValueError(
                "--model.top_entropy_fraction needs a ratio for each token; this algorithm has one "
                "for each completion. Leave it at 1"
            )
        if correction is not None:
            with flags("--model.correction_"):
                validate_bounds(correction_low, correction_high)
            if getattr(sampler, "report_logprobs", None) is False:
                raise ValueError(_missing_logprobs(correction))
        self.sampler = sampler
        self.top_entropy_fraction = top_entropy_fraction
        self.correction: Correction | None = correction
        self.correction_low = correction_low
        self.correction_high = correction_high

    @property
    def need_entropy(self) -> bool:
        """Whether `apply` needs the entropy of the policy that sampled."""
        return self.top_entropy_fraction < 1

    def apply(self, rollouts: Experience, entropy: Tensor | None) -> None:
        """Weight the advantages, narrow the completion mask, and add metrics.

        Args:
            rollouts: with old_logprobs if there are sampler_logprobs.
            entropy: [B, T] of the policy that sampled, if `need_entropy`.
        """
        if rollouts.sampler_logprobs is not None:
            assert rollouts.old_logprobs is not None, "the module needs them for this"
            mask = rollouts.completion_mask
            log_ratio = rollouts.old_logprobs[mask] - rollouts.sampler_logprobs[mask]
            rollouts.metrics |= self._mismatch(log_ratio)
        if self.correction is not None:
            self._correct(rollouts, self.correction)
        if entropy is not None and self.need_entropy:
            self._keep_top_entropy(rollouts, entropy)

    def _mismatch(self, log_ratio: Tensor) -> dict[str, float]:
        if not torch.isfinite(log_ratio).all():
            raise ValueError(
                "--model.sampler reported log-probabilities that are not finite for tokens that it "
                "sampled; set its report_logprobs to false if it cannot tell them"
            )
        log_ratio = torch.cat(gathered([log_ratio.cpu()]))
        # read at every rollout: it depends on the dtype that the trainer turned out to compute in
        if (tolerance := getattr(self.sampler, "logprob_tolerance", None)) is not None:
            with flags("--model.sampler.init_args.logprob_"):
                require_agreement(log_ratio, tolerance)
        return {name: float(value) for name, value in mismatch_metrics(log_ratio).items()}

    def _correct(self, rollouts: Experience, correction: Correction) -> None:
        if rollouts.sampler_logprobs is None or rollouts.old_logprobs is None:
            raise ValueError(_missing_logprobs(correction))
        mask = rollouts.completion_mask
        weights, kept = correction_weights(
            rollouts.old_logprobs,
            rollouts.sampler_logprobs,
            mask,
            correction=correction,
            low=self.correction_low,
            high=self.correction_high,
        )
        rollouts.advantages = weights * _per_token_advantages(rollouts)
        rollouts.completion_mask = kept
        rejected = torch.stack([mask.sum() - kept.sum(), mask.sum()]).cpu()
        rejected = torch.stack(gathered([rejected])).sum(0)
        rollouts.metrics["sampling/rejected_fraction"] = float(rejected[0] / rejected[1])

    def _keep_top_entropy(self, rollouts: Experience, entropy: Tensor) -> None:
        values = torch.cat(gathered([entropy[rollouts.completion_mask].cpu()]))
        if not len(values):  # a mask has rejected everything
            return
        threshold = top_entropy_threshold(values, self.top_entropy_fraction)
        top = (entropy >= threshold.to(entropy.device)).to(entropy.dtype)
        rollouts.advantages = top * _per_token_advantages(rollouts)
        rollouts.metrics["entropy_threshold"] = float(threshold)


def _per_token_advantages(rollouts: Experience) -> Tensor:
    advantages = rollouts.advantages
    return advantages[:, None] if advantages.ndim == 1 else advantages


def _missing_logprobs(correction: str) -> str:
    return (
        f"--model.correction {correction} compares the trainer's log-probabilities with the "
        "sampler's, but this sampler reports none: set --model.sampler.init_args.report_logprobs "
        "true, or leave --model.correction unset"
    )
