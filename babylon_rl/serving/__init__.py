"""Serving: the OpenAI-compatible endpoint of checkpoints (batched sampler, HTTP application, its process)."""
