"""The simulated market: its world, its agents, what they see, what they do, and what it earns them."""
