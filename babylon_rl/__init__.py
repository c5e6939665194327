"""babylon_rl: recorded trajectories of the Babylon game in, better checkpoints out.

The layout follows the data's way; `README.md` has the map.
"""

__version__ = "0.1.0"
