"""The `torch` backend: updates of a LoRA adapter on this machine, from a stream of groups, with ART's loss."""
