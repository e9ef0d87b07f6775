"""Verifiable rewards, and the scorer that survives verifiers which hang, raise or die."""

from rlsgd.rewards.base import Reward
from rlsgd.rewards.exact import ExactAnswer
from rlsgd.rewards.format import Format
from rlsgd.rewards.math import MathVerify
from rlsgd.rewards.reasoning_gym import ReasoningGymScore
from rlsgd.rewards.scorer import Scorer
from rlsgd.rewards.weighted_sum import WeightedSum

__all__ = [
    "ExactAnswer",
    "Format",
    "MathVerify",
    "ReasoningGymScore",
    "Reward",
    "Scorer",
    "WeightedSum",
]
