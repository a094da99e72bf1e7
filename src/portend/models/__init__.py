"""Networks as chains of blocks with exit branches, their data and their training."""
