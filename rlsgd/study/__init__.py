"""Studies: several optimizers on the same weights and prompts, each run in its own process."""
