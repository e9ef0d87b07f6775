"""The clipped surrogate of log-probabilities, as papers and other libraries write it."""

from rlsgd.functional.logprobs import policy_ratio
from rlsgd.functional.losses import Clip


def clipped_policy_loss(logprobs, old_logprobs, advantages, mask, **clip):
    return Clip(**clip).loss(policy_ratio(logprobs, old_logprobs, mask), advantages, mask)


def clip_fractions(logprobs, old_logprobs, advantages, mask, clip_low, clip_high):
    ratio = policy_ratio(logprobs, old_logprobs, mask)
    return Clip(clip_low, clip_high).fractions(ratio, advantages, mask)
