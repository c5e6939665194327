"""The backends behind one seam: `torch` (this machine), `wandb` (hosted), `art-local` (ART's runtime on a GPU)."""
