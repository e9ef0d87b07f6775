"""Verifiable rewards, and the scorer that survives verifiers which hang, raise or die."""

from rlsgd.rewards.base import BatchReward, Reward
from rlsgd.rewards.code_asserts import AssertTests
from rlsgd.rewards.code_stdio import StdioTests
from rlsgd.rewards.exact import ExactAnswer
from rlsgd.rewards.format import Format
from rlsgd.rewards.function import BatchFunctionReward, FunctionReward, as_reward
from rlsgd.rewards.math import MathVerify
from rlsgd.rewards.reasoning_gym import ReasoningGymScore
from rlsgd.rewards.sandbox.base import Bubblewrap, Unsandboxed
from rlsgd.rewards.sandbox.container import Container
from rlsgd.rewards.sandbox.landlock import Landlock
from rlsgd.rewards.scorer import Scorer
from rlsgd.rewards.weighted_sum import WeightedSum

__all__ = [
    "AssertTests",
    "BatchFunctionReward",
    "BatchReward",
    "Bubblewrap",
    "Container",
    "ExactAnswer",
    "Format",
    "FunctionReward",
    "Landlock",
    "MathVerify",
    "ReasoningGymScore",
    "Reward",
    "Scorer",
    "StdioTests",
    "Unsandboxed",
    "WeightedSum",
    "as_reward",
]
