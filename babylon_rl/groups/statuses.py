"""What may become of a window's group, as `art_groups.status` names it."""

TRAINABLE = "trainable"
NOT_READY = "not_ready"  # the window is not
TOO_FEW_MEMBERS = "too_few_members"
NO_SPREAD = "no_spread"  # rewards that are equal within the scorer's noise
AGENT_BIAS = "agent_bias"  # rewards that tell who the agent is more than what it did, and no baseline for that
