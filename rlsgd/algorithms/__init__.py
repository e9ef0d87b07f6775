"""One file for each algorithm. Import a class here to give it a short name on the command line."""

from rlsgd.algorithms.base import PolicyModule
from rlsgd.algorithms.grpo import GRPO
from rlsgd.algorithms.rl import RLModule
from rlsgd.algorithms.sft import SFT

__all__ = ["GRPO", "SFT", "PolicyModule", "RLModule"]
