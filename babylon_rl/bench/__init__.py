"""Bench: how well a recipe does over several seeds. What a seed came to, running the seeds, the report, publishing it."""
