"""Outcomes: what the market did in a window."""
