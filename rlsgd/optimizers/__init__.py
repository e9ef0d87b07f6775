"""Optimizers beyond torch's."""

from rlsgd.optimizers.container import OptimizerContainer
from rlsgd.optimizers.fused_backward import FusedBackwardSGD
from rlsgd.optimizers.muon import MuonWithAdamW
from rlsgd.optimizers.sgd_ll import SGDLL
from rlsgd.optimizers.sign_sgd import SignSGD

__all__ = ["SGDLL", "FusedBackwardSGD", "MuonWithAdamW", "OptimizerContainer", "SignSGD"]
