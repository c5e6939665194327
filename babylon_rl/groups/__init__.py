"""Groups: provenance, advantages, the trained view, ART types and immutable snapshots."""
