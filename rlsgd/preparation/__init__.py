"""Data sets of the papers: fetched or copied, checked, cleaned and kept as JSON lines."""
