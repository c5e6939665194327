"""The Dagster shell: one file per asset, no logic of its own; I/O, resources and automation beside them."""
