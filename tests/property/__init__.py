"""Hypothesis: what must hold for any input and any chunking of it."""
