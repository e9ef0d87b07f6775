"""Per-token estimators of KL(policy || reference), for use as a term of the loss.

Write d = ref_logprobs - logprobs at a token sampled from the policy. All four have expectation
KL(policy || reference) except k2, which has it only to second order in d. As a loss term what
counts is the expectation of the gradient, and there they differ:

| estimator      | value               | expectation of its gradient                              |
|----------------|---------------------|----------------------------------------------------------|
| `k1`           | -d                  | 0: it is noise                                           |
| `k2`           | d^2 / 2             | of the reverse KL, KL(policy, reference)                 |
| `k3`           | exp(d) - 1 - d      | of the forward KL, KL(reference, policy)                 |
| `k3-corrected` | ratio * k3          | of the reverse KL, also for tokens of an older policy    |

k1 to k3: http://joschu.net/blog/kl-approx.html; k3 is GRPO's (arXiv:2402.03300, eq. 4).
k3-corrected: arXiv:2512.02556, eq. 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from rlsgd.functional.logprobs import policy_ratio


def _k1(log_ref_ratio: Tensor) -> Tensor:
    return -log_ref_ratio


def _k2(log_ref_ratio: Tensor) -> Tensor:
    return log_ref_ratio.square() / 2


def _k3(log_ref_ratio: Tensor) -> Tensor:
    return log_ref_ratio.expm1() - log_ref_ratio


_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": _k1,
    "k2": _k2,
    "k3": _k3,
    "k3-corrected": _k3,
}
_RATIO_WEIGHTED = {"k3-corrected"}

KLEstimator = Literal["k1", "k2", "k3", "k3-corrected"]
KL_ESTIMATORS: tuple[KLEstimator, ...] = get_args(KLEstimator)


def validate_kl_estimator(kl_estimator: KLEstimator) -> None:
    """Raise ValueError for a name that is not in `KL_ESTIMATORS`."""
    if kl_estimator not in _ESTIMATORS:
        raise ValueError(
            f"kl_estimator {kl_estimator!r} is unknown; choose one of {', '.join(KL_ESTIMATORS)}"
        )


def kl_penalty(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    estimator: KLEstimator,
    old_logprobs: Tensor | None = None,
) -> Tensor:
    """Estimate KL(policy || reference) at each sampled token.

    Expectation of the gradient, for tokens sampled from the present policy: `k1` 0; `k2` that of
    the reverse KL(policy || reference); `k3` that of the forward KL(reference || policy);
    `k3-corrected` that of the reverse KL, and exactly so for tokens sampled from the policy of
    `old_logprobs` too, because its ratio is not detached.

    Args:
        logprobs: [B, T] of the policy, with gradient.
        ref_logprobs: [B, T] of the reference.
        mask: [B, T] bool.
        estimator: one of `KL_ESTIMATORS`.
        old_logprobs: [B, T] of the policy that sampled the tokens, for `k3-corrected`; None means
            the present policy: the ratio is 1 but has a gradient. Other estimators ignore it.

    Returns:
        [B, T] in nats, 0 where masked.
    """
    validate_kl_estimator(estimator)
    penalty = _ESTIMATORS[estimator](torch.where(mask, ref_logprobs - logprobs, 0.0))
    if estimator not in _RATIO_WEIGHTED:
        return penalty
    old_logprobs = logprobs.detach() if old_logprobs is None else old_logprobs
    return policy_ratio(logprobs, old_logprobs, mask) * penalty
