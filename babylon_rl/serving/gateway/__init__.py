"""The gateway: one OpenAI-compatible address for agents, which routes, records and never waits for the database."""
