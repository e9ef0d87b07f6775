"""Policy losses per token, unreduced; `aggregation.aggregate` makes one number of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def _per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """[B] or [B, T] -> [B, T] with zeros where masked."""
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    return torch.where(mask, advantages, 0.0)


@dataclass(frozen=True)
class Clip:
    """The clipped surrogate, to be minimised (arXiv:1707.06347, eq. 7), of a ratio that is given.

    Args:
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: and above at 1 + clip_high; DAPO's "clip higher" is 0.28 (arXiv:2503.14476).
        dual_clip: where the advantage is negative the loss is at most dual_clip * |advantage|
            (arXiv:1912.09729); None for no bound.

    Raises:
        ValueError: unless 0 <= clip_low < 1, clip_high >= 0 and dual_clip > 1 + clip_high.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1:
            raise ValueError(
                f"clip_low must be in [0, 1) (got {self.clip_low}): the ratio is clipped below at "
                "1 - clip_low, which must stay positive"
            )
        if not self.clip_high >= 0:
            raise ValueError(f"clip_high must be 0 or more (got {self.clip_high})")
        if self.dual_clip is not None and not self.dual_clip > 1 + self.clip_high:
            raise ValueError(
                f"dual_clip must be above 1 + clip_high = {1 + self.clip_high} (got "
                f"{self.dual_clip}), or unset for no bound"
            )

    def loss(self, ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """The surrogate of each token. At ratio 1 its gradient is exactly that of REINFORCE.

        Args:
            ratio: [B, T] with gradient, of tokens (`policy_ratio`) or one for a whole completion.
            advantages: [B], one for the whole completion, or [B, T].
            mask: [B, T] bool.

        Returns:
            [B, T], 0 where masked.
        """
        advantages = _per_token(advantages, mask)
        clipped = bounded(ratio, 1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * advantages, clipped * advantages)
        if self.dual_clip is None:
            return loss
        return torch.where(advantages < 0, loss.minimum(-self.dual_clip * advantages), loss)

    @torch.no_grad()
    def fractions(self, ratio: Tensor, advantages: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Which tokens' gradient the clip removes; their means are fractions.

        A ratio outside the bounds counts only where the advantage would push it further out, so
        all three are empty while the policy is the one that sampled. The dual clip is not counted.

        Args:
            ratio: [B, T]
            advantages: [B] or [B, T]
            mask: [B, T] bool.

        Returns:
            [B, T] bool each, False where masked, to be averaged over the unmasked tokens of all
            microbatches: `clip_ratio/low_mean`, `clip_ratio/high_mean` and
            `clip_ratio/region_mean`, which is either.
        """
        advantages = _per_token(advantages, mask)
        low = (ratio < 1 - self.clip_low) & (advantages < 0)
        high = (ratio > 1 + self.clip_high) & (advantages > 0)
        return {
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low | high,
        }


def bounded(values: Tensor, low: float, high: float) -> Tensor:
    """Values [...] clamped, with gradient 1 from bound to bound, both included.

    `torch.clamp` has that gradient before torch 2.15 and none at its bounds since. At the first
    step on a rollout every ratio is 1, which with a clip of 0 is a bound: there the loss must have
    the gradient of the unclipped objective.
    """
    inside = (values >= low) & (values <= high)
    return torch.where(inside, values, values.detach().clamp(low, high))


def sequence_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, length_normalized: bool
) -> Tensor:
    """One ratio for each completion, at each of its tokens.

    Length-normalized it is the geometric mean of the token ratios (GSPO, arXiv:2507.18071, eq. 7);
    otherwise their product, the ratio of the probabilities of the whole completion.

    Args:
        logprobs: [B, T] of the policy, with gradient.
        old_logprobs: [B, T] of the policy at rollout time.
        mask: [B, T] bool.
        length_normalized: divide the log-ratio by the number of unmasked tokens.

    Returns:
        [B, T], equal along each row, and 1 without gradient where masked.
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0).sum(-1, keepdim=True)
    if length_normalized:
        log_ratio = log_ratio / mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mask, log_ratio, 0.0).exp()


def weighted_logprob_loss(
    logprobs: Tensor, weights: Tensor, advantages: Tensor, mask: Tensor
) -> Tensor:
    """REINFORCE with importance weights: -weight * advantage * logprob, no gradient of the weight.

    Args:
        logprobs: [B, T] of the policy, with gradient.
        weights: [B, T], for example the ratio; detached here.
        advantages: [B] or [B, T].
        mask: [B, T] bool.

    Returns:
        [B, T], 0 where masked.
    """
    logprobs = torch.where(mask, logprobs, 0.0)
    return -weights.detach() * _per_token(advantages, mask) * logprobs
