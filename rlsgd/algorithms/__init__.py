"""One file for each algorithm. Import a class here to give it a short name on the command line."""

from rlsgd.algorithms.base import PolicyModule
from rlsgd.algorithms.cispo import CISPO
from rlsgd.algorithms.dapo import DAPO
from rlsgd.algorithms.dr_grpo import DrGRPO
from rlsgd.algorithms.evaluation import VerifiableModule
from rlsgd.algorithms.grpo import GRPO
from rlsgd.algorithms.gspo import GSPO
from rlsgd.algorithms.next_token import NextToken
from rlsgd.algorithms.ppo import PPO
from rlsgd.algorithms.reinforce import REINFORCE
from rlsgd.algorithms.reinforce_plus_plus import REINFORCEPlusPlus, REINFORCEPlusPlusBaseline
from rlsgd.algorithms.rl import RLModule
from rlsgd.algorithms.rloo import RLOO
from rlsgd.algorithms.sft import SFT

__all__ = [
    "CISPO",
    "DAPO",
    "GRPO",
    "GSPO",
    "PPO",
    "REINFORCE",
    "RLOO",
    "SFT",
    "DrGRPO",
    "NextToken",
    "PolicyModule",
    "REINFORCEPlusPlus",
    "REINFORCEPlusPlusBaseline",
    "RLModule",
    "VerifiableModule",
]
