"""rlsgd: optimizers in reinforcement-learning post-training of language models."""

from rlsgd.core.renamed import install

__version__ = "0.2.0"

install()
