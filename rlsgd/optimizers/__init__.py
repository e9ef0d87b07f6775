"""Optimizers beyond torch's."""

from rlsgd.optimizers.container import OptimizerContainer

__all__ = ["OptimizerContainer"]
