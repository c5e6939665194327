"""Readiness: which windows changed, whether they are ready, what was requested for them, and what nobody requested."""
