"""Scoring: features of a trajectory and the scorers that turn a window of them into rewards."""
