"""What every room shares: problems, rollouts, checkpoints on disk, kinds of layers, processes."""
