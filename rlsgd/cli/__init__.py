"""The command `rlsgd`."""
