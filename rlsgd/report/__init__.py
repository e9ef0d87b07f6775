"""`rlsgd report`: finished studies and runs of `rlsgd fit` on one self-contained HTML page."""
