"""Checkpoints between two iterations, and runs that go on from them."""

from rlsgd.resume.callback import IterationCheckpoint
from rlsgd.resume.files import AtomicCheckpointIO

__all__ = ["AtomicCheckpointIO", "IterationCheckpoint"]
