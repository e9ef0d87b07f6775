"""The maths: pure functions over tensors. Imports torch and nothing else."""
