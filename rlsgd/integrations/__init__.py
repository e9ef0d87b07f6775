"""rlsgd with the tools of others: its instruments in their trainers, its runs in their loggers."""
