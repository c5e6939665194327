"""The command groups of `babylon-rl`, one file each; `cli.py` puts them together."""
