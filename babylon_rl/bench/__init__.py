"""Bench: how well a recipe does over several seeds. Results, running, report, publishing."""
