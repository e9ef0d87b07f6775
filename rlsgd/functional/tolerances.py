"""Which differences count as none, and what the shares of such weights are called. No torch."""

TOLERANCES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)  # absolute, in units of the weight
ISCLOSE = "bf16_difference_isclose_1e-5"
RELATIVE_TOLERANCE = 1e-3  # arXiv:2511.08567; below bfloat16's spacing, which is at least 2^-8
RELATIVE = "unchanged_relative_1e-3"
