"""Evaluation: paired comparisons between arms, and the gate that decides on promotion."""
