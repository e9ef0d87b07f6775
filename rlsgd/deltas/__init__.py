"""Sparse checkpoints: the difference of two models as a small file, exact to the bit."""
