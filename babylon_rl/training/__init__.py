"""Training: from an immutable snapshot and a parent to a checkpoint (base models, policy, ART backend, ledger)."""
