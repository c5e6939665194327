"""Training: from an immutable snapshot and a parent to a checkpoint (base models, packed policy, ART backend, ledger)."""
