"""Sampling with vLLM: the engine, its server, and what it is sent."""
