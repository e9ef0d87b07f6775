"""Mathematical answers: found in a completion, read, and compared. Plain functions without torch.

`find` has the place of the answer, `normal` its text in one spelling, `quantities` exact numbers
with units, `structure` sets, tuples and intervals, `equality` the verdict. Expressions that none of
these reads go to math-verify and sympy, one at a time and within a budget.
"""
