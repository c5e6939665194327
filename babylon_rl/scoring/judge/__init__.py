"""The LLM judge: what it is shown, how what agents wrote is kept apart from what it is told, how it is asked."""
