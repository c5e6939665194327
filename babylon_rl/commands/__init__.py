"""The commands of the command line that are not in `cli.py`, a file for each."""
