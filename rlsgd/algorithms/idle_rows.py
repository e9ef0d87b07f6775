"""Idle rows: completions that add nothing to the loss, which no update has to compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlsgd.core.types import Experience, Microbatch

if TYPE_CHECKING:
    from rlsgd.algorithms.rl import RLModule


def mark_idle_rows(module: RLModule, experience: Experience, entropy: Tensor | None) -> None:
    """Set `idle` of an experience, and its metric.

    Args:
        module: the algorithm, whose loss decides.
        experience: a whole rollout.
        entropy: [B, T] by the trainer, in case the sampler has not told its own.
    """
    if experience.sampled_entropy is None:
        experience.sampled_entropy = entropy
    experience.idle = idle_rows(module, experience)
    experience.metrics["rollout/skipped_fraction"] = float(experience.idle.float().mean())


def idle_entropy(batch: Microbatch) -> Tensor:
    """Share [] of the idle rows of a microbatch in the mean entropy of its minibatch's tokens."""
    idle = batch.left_out
    if idle is None or not len(idle):
        return torch.zeros((), device=batch.input_ids.device)
    assert idle.sampled_entropy is not None, "or no row is idle"
    per_token = torch.where(idle.completion_mask, idle.sampled_entropy, 0.0)
    return per_token.sum() / batch.num_tokens.clamp(min=1)


def idle_rows(module: RLModule, experience: Experience) -> Tensor:
    """Completions without a token that adds to the loss, [B] bool on the CPU.

    None are idle where the loss has terms besides `per_token_loss` (`policy_loss_alone`). Else they
    are those without an unmasked token whose advantage is not 0, if `per_token_loss` is really 0
    there. It is tried with log-probabilities that are made up, since an algorithm of somebody's own
    may have a loss that is not linear in the advantages. Where nobody has computed the entropy of
    the policy that sampled, none are idle either: it is logged of all rows.
    """
    nowhere = torch.zeros(len(experience), dtype=torch.bool)
    if not module.policy_loss_alone or experience.sampled_entropy is None:
        return nowhere
    advantages = experience.advantages
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    idle = ~(experience.completion_mask & (advantages != 0)).any(1).cpu()
    rows = idle.nonzero().squeeze(1)
    if len(rows):
        idle[rows] = _without_loss(module, experience.select(rows)).cpu()
    return idle


def _without_loss(module: RLModule, experience: Experience) -> Tensor:
    """Rows [B] bool whose loss and its gradient are 0, at log-probabilities that are made up."""
    shape, device = experience.completion_mask.shape, experience.input_ids.device
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    old = experience.old_logprobs
    logprobs = (noise - 2 if old is None else old + 0.1 * noise).requires_grad_()
    count = experience.completion_mask.sum()
    batch = Microbatch.extending(experience, denominator=count, num_tokens=count)
    was_logging, module.is_logging = module.is_logging, False
    try:
        with torch.enable_grad():
            old = logprobs.detach() if old is None else old
            loss = module.per_token_loss(logprobs, old, batch)
            loss = torch.where(experience.completion_mask, loss, 0.0)
            (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    finally:
        module.is_logging = was_logging
    return ((loss == 0) & (gradient == 0)).all(1)
