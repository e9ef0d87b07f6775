"""Sampling completions and turning them into minibatches."""
