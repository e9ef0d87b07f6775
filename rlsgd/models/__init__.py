"""Causal language models: loading, sharding, scoring, and the critic."""
