"""Timings, memory and endurance: what costs how much, measured on the machine at hand."""
